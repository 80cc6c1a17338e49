// Prompts as the published Jinja templates of the built-in formats render them (jinja2 3.1, as transformers sets it
// up), and templates as tokenizers bring them.
#include "infer/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;
using Messages = std::vector<ChatMessage>;

ChatMessage said(std::string role, std::string content) { return {std::move(role), std::move(content), {}}; }

const Messages kOne = {said("user", "  Hi there \n")};
const Messages kMany = {said("system", " Be brief. "), said("user", " Hi "), said("assistant", " Hello! "),
                        said("user", "Bye")};
const Messages kTurns(kMany.begin() + 1, kMany.end());

std::string prompt(const char* name, const Messages& messages, AnswerHeader header = AnswerHeader::kAdded) {
  return ChatTemplate::built_in(chat_format_named(name), "<s>", "</s>")
      .prompt({.messages = messages, .header = header});
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
  EXPECT_EQ(prompt("chatml", kOne, AnswerHeader::kLeftOut), "<|im_start|>user\n  Hi there \n<|im_end|>\n");
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
  EXPECT_THAT(refusal([] {
                prompt("llama-2", {said("user", "a"), said("user", "b")});
              }),
              HasSubstr("message 1 is of 'user'"));
  EXPECT_THAT(refusal([] { prompt("chatml", {said("tool", "a")}); }), HasSubstr("role 'tool'"));
  EXPECT_THAT(refusal([] { prompt("chatml", {}); }), HasSubstr("no messages"));
  EXPECT_THAT(refusal([] { prompt("llama-3", {said("user", "\xff")}); }), HasSubstr("no UTF-8"));
  EXPECT_THAT(refusal([] { prompt("chatml", {{"assistant", std::nullopt, {}}}); }), HasSubstr("has no text"));
  EXPECT_THAT(refusal([] {
                ChatTemplate::built_in(ChatFormat::kChatMl, "", "").prompt({.messages = kOne, .tools = {{{"a", 1}}}});
              }),
              HasSubstr("no tools"));
  EXPECT_THAT(refusal([] { chat_format_named("vicuna"); }),
              HasSubstr("right are chatml, llama-3, llama-2 and mistral"));
}

TEST(ChatMessage, PartsBecomeOneTextAndOtherFieldsStay) {
  const ChatMessage parts = chat_message_of(
      Json::parse(
          R"({"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})"),
      "m");
  EXPECT_EQ(parts.content, "a\nb");
  EXPECT_EQ(parts.more, Json({{"name", "Ann"}}));
  const ChatMessage call = chat_message_of(
      Json::parse(
          R"({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}, {"function": {"name": "g", "arguments": "no JSON"}}]})"),
      "m");
  EXPECT_FALSE(call.content.has_value());
  EXPECT_EQ(call.more["tool_calls"][0]["function"]["arguments"], Json({{"x", 1}}));
  EXPECT_EQ(call.more["tool_calls"][1]["function"]["arguments"], "no JSON");
}

TEST(ChatMessage, WhatIsNoMessageIsRefusedByPlace) {
  const auto refused = [](const char* text) {
    return refusal([&] { chat_messages_of(Json::parse(text), "messages"); });
  };
  EXPECT_THAT(refused("[]"), HasSubstr("messages: right is a list of one message or more"));
  EXPECT_THAT(refused("[1]"), HasSubstr("messages[0]: is no object"));
  EXPECT_THAT(refused(R"([{"content": "a"}])"), HasSubstr("messages[0]: has no 'role'"));
  EXPECT_THAT(refused(R"([{"role": 1}])"), HasSubstr("messages[0].role: is no text"));
  EXPECT_THAT(refused(R"([{"role": "user"}])"), HasSubstr("messages[0]: has no 'content'"));
  EXPECT_THAT(refused(R"([{"role": "user", "content": 5}])"), HasSubstr("messages[0].content: is no text"));
  EXPECT_THAT(refused(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
              HasSubstr("messages[0].content[0]: a part of type 'image_url'"));
  EXPECT_THAT(refused(R"([{"role": "user", "content": ["a"]}])"),
              HasSubstr("messages[0].content[0]: right is an object"));
}

std::unique_ptr<Tokenizer> tokenizer_with(const nlohmann::json& config) {
  nlohmann::json json = test::byte_level_tokenizer();
  json["added_tokens"] = {test::added_token(258, "<|im_start|>"), test::added_token(259, "<|im_end|>"),
                          test::added_token(260, "</s>")};
  return test::tokenizer_from(json, config.dump());
}

constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// ChatML with a system's line where the conversation has none, as SmolLM2 has it.
constexpr const char* kWithSystem =
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nHelp.<|im_end|>"
    "\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

TEST(ChatTemplate, ATokenizersOwnTemplateIsCarriedOut) {
  nlohmann::json own = {{"eos_token", "<|im_end|>"}, {"chat_template", kChatMl}};
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").prompt({.messages = kMany}), prompt("chatml", kMany));
  own["chat_template"] = std::string(kChatMl) + "\n";
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").prompt({.messages = kMany}), prompt("chatml", kMany))
      << "a newline more changes nothing";
  own["chat_template"] = kWithSystem;
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").prompt({.messages = kOne}),
            "<|im_start|>system\nHelp.<|im_end|>\n" + prompt("chatml", kOne));
  EXPECT_EQ(chat_template_of(*tokenizer_with(own), "auto", "x").prompt({.messages = kMany}), prompt("chatml", kMany));
}

TEST(ChatTemplate, OneOfSeveralNamedTemplatesIsTaken) {
  const nlohmann::json own = {{"chat_template",
                               {{{"name", "default"}, {"template", "plain"}},
                                {{"name", "tool_use"}, {"template", "tools {{ tools | length }}"}},
                                {{"name", "rag"}, {"template", "{{ documents | length }} documents"}}}}};
  const auto tokenizer = tokenizer_with(own);
  const Json list = {{{"text", "a"}}, {{"text", "b"}}};
  EXPECT_EQ(chat_template_of(*tokenizer, "auto", "x").prompt({.messages = kOne}), "plain");
  EXPECT_EQ(chat_template_of(*tokenizer, "auto", "x").prompt({.messages = kOne, .tools = list}), "tools 2");
  EXPECT_EQ(chat_template_of(*tokenizer, "rag", "x").prompt({.messages = kOne, .documents = list}), "2 documents");
}

TEST(ChatTemplate, ATemplateSeesTokensToolsAndVariables) {
  const nlohmann::json own = {
      {"bos_token", {{"content", "<s>"}}},
      {"eos_token", "</s>"},
      {"chat_template",
       "{{ bos_token }}{{ messages[0].name }}{{ messages[0].content is none }}{{ tools is none }}{{ documents is none "
       "}}"
       "{{ add_generation_prompt }}{{ thinks | default('no') }}{{ pad_token is defined }}{{ eos_token }}"}};
  const ChatTemplate chat = chat_template_of(*tokenizer_with(own), "auto", "x");
  const Messages named = {{"user", std::nullopt, {{"name", "Ann"}}}};
  EXPECT_EQ(chat.prompt({.messages = named}), "<s>AnnTrueTrueTrueTruenoFalse</s>");
  EXPECT_EQ(chat.prompt({.messages = kOne, .variables = {{"thinks", "yes"}}, .header = AnswerHeader::kLeftOut}),
            "<s>FalseTrueTrueFalseyesFalse</s>");
}

TEST(ChatTemplate, AFileWithATemplateCanBeNamed) {
  const TemporaryFolder folder;
  folder.write("mine.jinja", "{{ bos_token }}{{ messages[0].content }}");
  const auto tokenizer = tokenizer_with({{"bos_token", "<s>"}});
  const std::string path = (folder / "mine.jinja").string();
  EXPECT_EQ(chat_template_of(*tokenizer, path, "x").prompt({.messages = kOne}), "<s>  Hi there \n");
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer, path + "2", "x"); }),
              HasSubstr("is no file; right are auto, "));
  folder.write("mine.jinja", "\n{% nonsense %}");
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer, path, "x"); }),
              HasSubstr("mine.jinja: line 2: unknown tag 'nonsense'"));
}

TEST(ChatTemplate, WhatATokenizerDoesNotHaveIsRefused) {
  const nlohmann::json end = {{"eos_token", "<|im_end|>"}};
  EXPECT_EQ(chat_template_of(*tokenizer_with(end), "chatml", "x").prompt({.messages = kOne}), prompt("chatml", kOne));
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(end), "auto", "out"); }),
              HasSubstr("out: the tokenizer has no chat template"));
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(end), "llama-3", "out"); }),
              HasSubstr("out: '<|eot_id|>' is no token"));
  EXPECT_THAT(refusal([] { chat_template_of(*make_byte_tokenizer(), "chatml", "out"); }), HasSubstr("is no token"));
  const nlohmann::json raises = {{"chat_template", "a\n{{ raise_exception('only in pairs') }}"}};
  EXPECT_THAT(refusal([&] { chat_template_of(*tokenizer_with(raises), "auto", "out").prompt({.messages = kOne}); }),
              HasSubstr("out: the chat template: line 2: only in pairs"));
}

TEST(ChatTemplate, TheControlIdBehindAnAnswerEndsIt) {
  const auto ends = [](const std::string& source) {
    const auto tokenizer = tokenizer_with({{"eos_token", "</s>"}, {"chat_template", source}});
    return chat_template_of(*tokenizer, "auto", "x").end_ids(*tokenizer);
  };
  EXPECT_THAT(ends(kChatMl), ElementsAre(259));
  EXPECT_THAT(ends(kWithSystem), ElementsAre(259));
  EXPECT_THAT(ends("{% for m in messages %}{{ m.content | trim }} {{ eos_token }}{% endfor %}"), ElementsAre(260));
  EXPECT_THAT(ends("{% for m in messages %}{{ m.role }}: {{ m.content }}\nEND\n{% endfor %}"), ElementsAre());
  EXPECT_THAT(ends("{{ messages[-1].content }}"), ElementsAre());
  EXPECT_THAT(ends("{{ raise_exception('never') }}"), ElementsAre());
  const auto tokenizer = tokenizer_with({{"eos_token", "</s>"}});
  EXPECT_THAT(chat_template_of(*tokenizer, "chatml", "x").end_ids(*tokenizer), ElementsAre(259));
}

TEST(ChatTemplate, SpecialTokensOfAPromptAreOneIdEach) {
  const auto tokenizer = tokenizer_with({{"eos_token", "<|im_end|>"}});
  const auto ids = tokenizer->encode(chat_template_of(*tokenizer, "chatml", "x").prompt({.messages = kOne}));
  EXPECT_EQ(std::ranges::count(ids, 258), 2);
  EXPECT_EQ(std::ranges::count(ids, 259), 1);
}

}  // namespace
}  // namespace kvloom
