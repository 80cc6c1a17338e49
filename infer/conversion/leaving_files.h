// The small files that a model leaves with for a Hugging Face folder: its config, its tokenizer as transformers loads
// it, and where its texts end.
#pragma once

#include <string>
#include <vector>

#include "core/convert/plan_models.h"

namespace kvloom {

struct LeavingFiles {
  std::vector<NamedFile> files;
  std::vector<std::string> notes;  // of what could not be said in them, a line each
};

// `dtype` is the tensors', for config.json.
LeavingFiles files_for_huggingface(const ModelSource& source, const TargetModel& target, DType dtype);

// A line where the tokenizer has more ids than the target; empty: it has not. Such ids do no harm while no text has
// them.
std::string warning_of_vocabulary(const ModelSource& source, const TargetModel& target);

}  // namespace kvloom
