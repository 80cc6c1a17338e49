// A KV map as lines of text: one row a layer, one column a KV layer, each reader joined to the column that it reads.
#pragma once

#include <string>

#include "core/kv_map.h"

namespace kvloom {

// The top layer first, below a line with the KV layers' numbers. A column runs from its KV layer, '#', to its furthest
// reader. A reader's row is joined from the left to the column of its source and ends there: with '#' where it reads
// itself, '^' where it reads a layer above and 'v' one below; joined by '-', or by '~' where it sees a window alone.
// Behind the columns the same is said in words. Maps of more than 64 KV layers are said in words alone.
//
//              0  3
//    3 [KV] -----#  reads itself; 3 layers read it
//    2      -----^  reads 3 above, earlier tokens
//    1      ~~v  |  reads 0 below, the last 128 positions   (and so on)
std::string draw(const KvMap& map);

}  // namespace kvloom
