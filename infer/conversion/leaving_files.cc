#include "infer/conversion/leaving_files.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "core/convert/huggingface_origin.h"
#include "core/convert/json_fields.h"
#include "core/tokenizer_files.h"
#include "infer/generation_config.h"
#include "infer/tokenizer.h"
#include "infer/tokenizer_export.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

void add_tokenizers_end(const ModelSource& source, const TargetModel& target, std::vector<NamedFile>& files) {
  const std::string where = source.path.string();
  if (!text_ends_of(source.origin, target.model.vocab, where).ends.empty()) return;
  const auto tokenizer = make_tokenizer(source.manifest->tokenizer_kind(), source.manifest->tokenizer(), where);
  const std::string* own = content_of(files, kGenerationConfig);
  nlohmann::ordered_json config = own == nullptr ? nlohmann::ordered_json::object() : parse_json_object(*own, where);
  if (const auto start = tokenizer->start_ids(); !start.empty()) config["bos_token_id"] = start.front();
  config["eos_token_id"] = tokenizer->separator();
  std::erase_if(files, [](const NamedFile& file) { return file.name == kGenerationConfig; });
  files.push_back({std::string(kGenerationConfig), config.dump(2) + "\n"});
}

// Other programs end a text by what generation_config.json says. Where nothing that the model brought along says it,
// its tokenizer does. What kvloom cannot read of these others may: it leaves as it came.
void add_ends(const ModelSource& source, const TargetModel& target, LeavingFiles& leaving) {
  if (!source.manifest || source.manifest->tokenizer_kind().empty()) return;
  try {
    add_tokenizers_end(source, target, leaving.files);
  } catch (const InputError& error) {
    leaving.notes.push_back(
        fmt::format("note: {} gets no end of texts from the tokenizer: {}", kGenerationConfig, error.what()));
  }
}

// A tokenizer of kvloom's own leaves as transformers loads it.
void add_own_tokenizer(const ModelSource& source, LeavingFiles& leaving) {
  if (!source.manifest) return;
  const CarriedTokenizer own{source.manifest->tokenizer_kind(), source.manifest->tokenizer()};
  ExportedTokenizer exported = export_tokenizer(own, source.path.string());
  for (NamedFile& file : exported.files) {
    std::erase_if(leaving.files, [&](const NamedFile& other) { return other.name == file.name; });
    leaving.files.push_back(std::move(file));
  }
  if (exported.missing.empty()) return;
  leaving.notes.push_back(fmt::format("note: no {} is written: {}; transformers reads {} (it needs sentencepiece)",
                                      kTokenizerJson, exported.missing, kTokenizerModel));
}

}  // namespace

LeavingFiles files_for_huggingface(const ModelSource& source, const TargetModel& target, DType dtype) {
  LeavingFiles leaving{.files = huggingface_files(source, target, dtype), .notes = {}};
  add_own_tokenizer(source, leaving);
  add_ends(source, target, leaving);
  return leaving;
}

std::string warning_of_vocabulary(const ModelSource& source, const TargetModel& target) {
  const TargetModel as_it_is{
      .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
  const proto::Manifest manifest = checkpoint_manifest(source, as_it_is);
  if (manifest.tokenizer_kind().empty()) return {};
  try {
    const auto tokenizer = make_tokenizer(manifest.tokenizer_kind(), manifest.tokenizer(), source.path.string());
    if (tokenizer->vocab() <= target.model.vocab) return {};
    return fmt::format(
        "warning: the tokenizer has {} ids and the model {}: a text with one beyond fails; --pad-vocab {} adds "
        "them",
        tokenizer->vocab(), target.model.vocab, tokenizer->vocab());
  } catch (const InputError&) {
    return {};  // it goes along all the same
  }
}

}  // namespace kvloom
