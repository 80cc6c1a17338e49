#include "infer/huggingface/post_processor.h"

namespace kvloom::huggingface {
namespace {

using IdOf = std::function<std::int32_t(std::string_view)>;

std::int32_t checked_id(const JsonNode& token, const JsonNode& id, const IdOf& id_of) {
  const std::int32_t right = id_of(token.text());
  if (right < 0) token.reject("'{}' is no token", token.text().substr(0, 80));
  if (id.integer(0, 1 << 30) != right) id.reject("{}; '{}' is {}", id.shown(), token.text().substr(0, 80), right);
  return right;
}

std::vector<std::int32_t> read_special(const JsonNode& specials, const JsonNode& name, const IdOf& id_of) {
  if (!specials.has(name.text())) name.reject("'{}' is not among special_tokens", name.text().substr(0, 80));
  const JsonNode special = specials.at(name.text());
  const std::vector<JsonNode> ids = special.at("ids").items();
  const std::vector<JsonNode> tokens = special.at("tokens").items();
  if (ids.size() != tokens.size()) special.reject("{} ids for {} tokens", ids.size(), tokens.size());
  std::vector<std::int32_t> read;
  for (std::size_t i = 0; i < ids.size(); ++i) read.push_back(checked_id(tokens[i], ids[i], id_of));
  return read;
}

Surrounding read_template(const JsonNode& node, const IdOf& id_of) {
  Surrounding read;
  bool text_came = false;
  for (const JsonNode& piece : node.at("single").items()) {
    if (piece.has("Sequence")) {
      const JsonNode id = piece.at("Sequence").at("id");
      if (id.text() != "A" || text_came) id.reject("'{}'; right is the text, A, once", id.text().substr(0, 40));
      text_came = true;
      continue;
    }
    const JsonNode name = piece.at("SpecialToken").at("id");
    std::vector<std::int32_t>& side = text_came ? read.behind : read.before;
    const std::vector<std::int32_t> ids = read_special(node.at("special_tokens"), name, id_of);
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (!text_came) node.at("single").reject("has no place for the text");
  return read;
}

Surrounding read_bert(const JsonNode& node, const IdOf& id_of) {
  const auto id = [&](const char* name) {
    const std::vector<JsonNode> pair = node.at(name).items();
    if (pair.size() != 2) node.at(name).reject("has {} parts; right are token and id", pair.size());
    return checked_id(pair[0], pair[1], id_of);
  };
  return {{id("cls")}, {id("sep")}};
}

Surrounding read_sequence(const JsonNode& node, const IdOf& id_of) {
  Surrounding read;
  for (const JsonNode& processor : node.at("processors").items()) {
    if (processor.type() == "Sequence") processor.reject("a Sequence within a Sequence is not supported");
    const Surrounding outer = read_post_processor(processor, id_of);
    read.before.insert(read.before.begin(), outer.before.begin(), outer.before.end());
    read.behind.insert(read.behind.end(), outer.behind.begin(), outer.behind.end());
  }
  return read;
}

}  // namespace

Surrounding read_post_processor(const JsonNode& node, const IdOf& id_of) {
  const std::string type = node.type();
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return read_template(node, id_of);
  if (type == "BertProcessing" || type == "RobertaProcessing") return read_bert(node, id_of);
  if (type == "Sequence") return read_sequence(node, id_of);
  node.reject(
      "post-processor '{}'; kvloom knows ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing and Sequence",
      type);
}

}  // namespace kvloom::huggingface
