// Published data sets as task files, with the prompts of the evaluation harness's tasks of the same names.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kvloom {

struct DatasetSource {
  std::filesystem::path records;
  std::filesystem::path labels;  // one a record, where they come in a file of their own; else empty
};

// hellaswag, openbookqa, winogrande, arc_easy, arc_challenge, boolq, piqa, lambada.
std::vector<std::string> dataset_names();

// The task file's text, header first. Records as the data sets' authors publish them (README.md) or with the fields of
// their Hugging Face editions. Throws InputError for an unknown name, and naming file, line and field of a record that
// is another data set's, or has no answer.
std::string make_dataset_task(const std::string& name, const DatasetSource& source);

}  // namespace kvloom
