// A tokenizer of kvloom's own as the files that transformers loads.
#pragma once

#include <string>
#include <vector>

#include "core/tokenizer_files.h"

namespace kvloom {

struct ExportedTokenizer {
  std::vector<NamedFile> files;  // tokenizer.json and tokenizer_config.json; of SentencePiece its tokenizer.model too
  std::string missing;           // why there is no tokenizer.json, in words; empty where there is one
};

// Of kinds "bytes" and "sentencepiece"; nothing for others, which bring their own files. The tokenizer.json gives the
// ids of the original, in transformers 4.57 and 5, with nothing put around a text, except that the texts of special
// tokens are those tokens, as everywhere in transformers. A SentencePiece model that is no BPE or changes texts has
// none: its tokenizer_config.json says what transformers needs to know to read the model itself. The configuration
// names its origin under "kvloom", by which tokenizer_among finds the original again.
ExportedTokenizer export_tokenizer(const CarriedTokenizer& tokenizer, const std::string& where);

}  // namespace kvloom
