// Attention of one query a sequence: bound by reading keys and values once.
#pragma once

#include "kernels/attention.h"

namespace kvloom::cpu {

// AttentionForward for queries == 1. Strides are filled in.
void attend_single_query(const AttentionForward& op);

}  // namespace kvloom::cpu
