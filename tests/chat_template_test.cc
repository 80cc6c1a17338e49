// Prompts as the published Jinja templates of the four formats render them (jinja2 3.1, as transformers sets it up).
#include "infer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/small_tokenizer.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Messages = std::vector<ChatMessage>;

const Messages kOne = {{"user", "  Hi there \n"}};
const Messages kMany = {{"system", " Be brief. "}, {"user", " Hi "}, {"assistant", " Hello! "}, {"user", "Bye"}};
const Messages kTurns(kMany.begin() + 1, kMany.end());

std::string prompt(const char* name, const Messages& messages) {
  return ChatTemplate(chat_format_named(name), "<s>", "</s>").prompt(messages);
}

std::string refusal(const std::function<void()>& act) {
  try {
    act();
  } catch (const InputError& error) {
    return error.what();
  }
  return "not refused";
}

TEST(ChatTemplate, ChatMlKeepsTextsAsTheyAre) {
  EXPECT_EQ(prompt("chatml", kOne), "<|im_start|>user\n  Hi there \n<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(
      prompt("chatml", kMany),
      "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n Hello! "
      "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, Llama3TrimsTexts) {
  EXPECT_EQ(
      prompt("llama-3", kOne),
      "<s><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
      "\n\n");
  EXPECT_EQ(
      prompt("llama-3", kMany),
      "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
      "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user"
      "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplate, Llama2PutsTheSystemsTextIntoTheFirstMessage) {
  EXPECT_EQ(prompt("llama-2", kOne), "<s>[INST] Hi there [/INST]");
  EXPECT_EQ(prompt("llama-2", kMany),
            "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hi [/INST] Hello! </s><s>[INST] Bye [/INST]");
  EXPECT_EQ(prompt("llama-2", kTurns), "<s>[INST] Hi [/INST] Hello! </s><s>[INST] Bye [/INST]");
}

TEST(ChatTemplate, MistralBeginsOnce) {
  EXPECT_EQ(prompt("mistral", kOne), "<s>[INST]   Hi there \n [/INST]");
  EXPECT_EQ(prompt("mistral", kTurns), "<s>[INST]  Hi  [/INST] Hello! </s>[INST] Bye [/INST]");
}

TEST(ChatTemplate, ConversationsThatAFormatCannotSayAreRefused) {
  EXPECT_THAT(refusal([] { prompt("mistral", kMany); }), HasSubstr("message 0 is of 'system'"));
  EXPECT_THAT(refusal([] { prompt("llama-2", {{"user", "a"}, {"user", "b"}}); }), HasSubstr("message 1 is of 'user'"));
  EXPECT_THAT(refusal([] { prompt("chatml", {{"tool", "a"}}); }), HasSubstr("role 'tool'"));
  EXPECT_THAT(refusal([] { prompt("chatml", {}); }), HasSubstr("no messages"));
  EXPECT_THAT(refusal([] { prompt("llama-3", {{"user", "\xff"}}); }), HasSubstr("no UTF-8"));
  EXPECT_THAT(refusal([] { chat_format_named("vicuna"); }),
              HasSubstr("right are chatml, llama-3, llama-2 and mistral"));
}

std::unique_ptr<Tokenizer> tokenizer_with(const nlohmann::json& config) {
  nlohmann::json json = test::byte_level_tokenizer();
  json["added_tokens"] = {test::added_token(258, "<|im_start|>"), test::added_token(259, "<|im_end|>")};
  return test::tokenizer_from(json, config.dump());
}

TEST(ChatTemplate, ATokenizersOwnTemplateIsTakenToTheLetterOrRefused) {
  const std::string chatml =
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
      "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  const nlohmann::json end = {{"eos_token", "<|im_end|>"}};
  nlohmann::json own = end;
  own["chat_template"] = chatml;
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").prompt(kOne), prompt("chatml", kOne));
  own["chat_template"] = {{{"name", "tools"}, {"template", "t"}}, {{"name", "default"}, {"template", chatml}}};
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").end_of_turn(), "<|im_end|>");
  own["chat_template"] = chatml + " ";
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(own), "auto", "out"); }),
              HasSubstr("out: the tokenizer's chat template is none of those built in; right is one by name: chatml"));
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "chatml", "x").prompt(kOne), prompt("chatml", kOne));
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(end), "auto", "out"); }),
              HasSubstr("out: the tokenizer has no chat template"));
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(end), "llama-3", "out"); }),
              HasSubstr("out: '<|eot_id|>' is no token"));
  EXPECT_THAT(refusal([] { chat_template_of(*make_byte_tokenizer(), "chatml", "out"); }), HasSubstr("is no token"));
}

TEST(ChatTemplate, SpecialTokensOfAPromptAreOneIdEach) {
  const auto tokenizer = tokenizer_with({{"eos_token", "<|im_end|>"}});
  const auto ids = tokenizer->encode(chat_template_of(*tokenizer, "chatml", "x").prompt(kOne));
  EXPECT_EQ(std::ranges::count(ids, 258), 2);
  EXPECT_EQ(std::ranges::count(ids, 259), 1);
}

}  // namespace
}  // namespace kvloom
