// Reading, completing and checking run configs (core/config.h).
#include <google/protobuf/descriptor.h>
#include <google/protobuf/stubs/strutil.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string_view>
#include <vector>

#include "core/checkpoint_reader.h"
#include "core/config.h"
#include "core/convert/model_source.h"
#include "core/file.h"
#include "core/message_text.h"

namespace kvloom {
namespace {

namespace pb = google::protobuf;

constexpr std::uint64_t kLargestConfigFile = std::uint64_t{1} << 20;
constexpr std::uint32_t kLargestBatch = std::uint32_t{1} << 20;
constexpr std::uint32_t kMostRanks = 4096;  // of an axis of the mesh, and stages of a rank
// A device's memory and speeds in the units of mesh.*: beyond any there is, and far from what overflows.
constexpr double kLeastOfDevice = 1e-6;
constexpr double kMostOfDevice = 1e6;

const pb::FieldDescriptor& field_named(const std::string& override_text, const pb::Descriptor& message,
                                       const std::string& name) {
  const pb::FieldDescriptor* field = message.FindFieldByName(name);
  if (field == nullptr) {
    reject_input("--set {}: {} has no field '{}'{}; it has {}", override_text, message.name(), name,
                 meant_field(message, name), field_names(message));
  }
  return *field;
}

// One literal of the text format, from its first quote to its last.
bool is_string_literal(const std::string& value) {
  if (value.size() < 2 || (value.front() != '"' && value.front() != '\'')) return false;
  for (std::size_t i = 1; i < value.size(); ++i) {
    if (value[i] == value.front()) return i + 1 == value.size();
    if (value[i] == '\\') ++i;
  }
  return false;
}

// A value that cannot end its field and begin another.
bool is_plain_word(const std::string& value) {
  return !value.empty() && std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '+' || c == '-' || c == '.';
  });
}

std::string literal_of(const std::string& override_text, const pb::FieldDescriptor& field, const std::string& value) {
  if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING) {
    return is_string_literal(value) ? value : '"' + pb::CEscape(value) + '"';
  }
  if (!is_plain_word(value)) reject_input("--set {}: '{}' is no value of '{}'", override_text, value, field.name());
  return value;
}

void merge_override(const std::string& override_text, const std::string& text, proto::RunConfig& config) {
  if (const auto error = merge_message_text(text, config)) reject_input("--set {}: {}", override_text, *error);
}

// "a.b=v" as the text `a { b: v }`.
void apply_override(const std::string& text, proto::RunConfig& config) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) reject_input("--set {}: write it as field.path=value", text);
  const std::string value = text.substr(equals + 1);
  std::string_view path = std::string_view(text).substr(0, equals);
  std::string opening;
  std::string closing;
  const pb::Descriptor* message = config.GetDescriptor();
  while (true) {
    const std::size_t dot = path.find('.');
    const pb::FieldDescriptor& field = field_named(text, *message, std::string(path.substr(0, dot)));
    const bool is_message = field.cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE;
    if (dot == std::string_view::npos) {
      if (is_message) {
        reject_input("--set {}: '{}' is a group; name one of its fields: {}", text, field.name(),
                     field_names(*field.message_type()));
      }
      opening += field.name() + ": " + literal_of(text, field, value);
      break;
    }
    if (!is_message) reject_input("--set {}: '{}' has no fields of its own", text, field.name());
    opening += field.name() + " { ";
    closing += " }";
    message = field.message_type();
    path.remove_prefix(dot + 1);
  }
  merge_override(text, opening + closing, config);
}

// The text format takes numbers for enums, known or not.
void check_enums(const pb::Message& message, const std::string& path) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const pb::FieldDescriptor* field : fields) {
    const std::string name = path + field->name();
    if (field->message_type() != nullptr) {
      check_enums(reflection.GetMessage(message, field), name + ".");
    } else if (field->enum_type() != nullptr) {
      const int value = reflection.GetEnumValue(message, field);
      if (field->enum_type()->FindValueByNumber(value) == nullptr) {
        reject_input("{}: {}; right are {}", name, value, value_names(*field->enum_type()));
      }
    }
  }
}

// A run that starts from a checkpoint's weights trains its model; what the config says itself goes over that. Of an
// output directory the checkpoint is chosen here, once: weights come from where the model came from.
void fill_model(proto::RunConfig& config) {
  const std::string& from = config.train().start_from();
  if (from.empty()) return;
  const std::filesystem::path folder = checkpoint_named(from, "train.start_from");
  config.mutable_train()->set_start_from(folder.string());
  const CheckpointReader reader(folder);
  proto::ModelConfig model = reader.manifest().model();
  model.MergeFrom(config.model());
  *config.mutable_model() = model;
  if (!config.has_passes()) *config.mutable_passes() = reader.manifest().passes();
}

void fill_passes(proto::RunConfig& config) {
  const Passes passes = passes_of(config.passes());
  config.mutable_passes()->set_without_gradient(static_cast<std::uint32_t>(passes.without_gradient));
  config.mutable_passes()->set_with_gradient(static_cast<std::uint32_t>(passes.with_gradient));
}

void fill_train(proto::TrainConfig& train) {
  if (!train.has_steps()) train.set_steps(200);
  if (!train.has_micro_batch()) train.set_micro_batch(4);
  if (!train.has_global_batch()) train.set_global_batch(16);
  if (!train.has_learning_rate()) train.set_learning_rate(1e-3);
  if (!train.has_minimum_learning_rate()) train.set_minimum_learning_rate(train.learning_rate() / 10);
  if (train.decay_steps() == 0) train.set_decay_steps(std::max(1u, train.steps() / 10));
  if (!train.has_weight_decay()) train.set_weight_decay(0.1);
  if (!train.has_beta1()) train.set_beta1(0.9);
  if (!train.has_beta2()) train.set_beta2(0.95);
  if (!train.has_epsilon()) train.set_epsilon(1e-8);
  if (!train.has_gradient_clip()) train.set_gradient_clip(1);
  if (!train.has_evaluation_sequences()) train.set_evaluation_sequences(64);
}

void require(bool holds, std::string_view field, double value, std::string_view right) {
  if (!holds) reject_input("train.{}: {}; right is {}", field, value, right);
}

void check_train(const proto::TrainConfig& train) {
  require(train.steps() > 0, "steps", train.steps(), "1 or more");
  require(train.micro_batch() > 0, "micro_batch", train.micro_batch(), "1 or more sequences");
  require(train.global_batch() > 0, "global_batch", train.global_batch(), "1 or more sequences");
  require(train.evaluation_sequences() > 0, "evaluation_sequences", train.evaluation_sequences(), "1 or more");
  require(train.learning_rate() > 0 && std::isfinite(train.learning_rate()), "learning_rate", train.learning_rate(),
          "a positive number");
  require(train.minimum_learning_rate() >= 0 && train.minimum_learning_rate() <= train.learning_rate(),
          "minimum_learning_rate", train.minimum_learning_rate(), "0 to train.learning_rate");
  require(train.weight_decay() >= 0 && std::isfinite(train.weight_decay()), "weight_decay", train.weight_decay(),
          "0 or more");
  require(train.beta1() >= 0 && train.beta1() < 1, "beta1", train.beta1(), "0 to below 1");
  require(train.beta2() >= 0 && train.beta2() < 1, "beta2", train.beta2(), "0 to below 1");
  require(train.epsilon() > 0 && std::isfinite(train.epsilon()), "epsilon", train.epsilon(), "a positive number");
  require(train.gradient_clip() >= 0, "gradient_clip", train.gradient_clip(), "0 for none, or a positive norm");
  require(train.warmup_steps() <= train.steps(), "warmup_steps", train.warmup_steps(),
          fmt::format("at most train.steps {}", train.steps()));
  require(train.global_batch() <= kLargestBatch, "global_batch", train.global_batch(),
          fmt::format("at most {} sequences", kLargestBatch));
  require(train.global_batch() % train.micro_batch() == 0, "global_batch", train.global_batch(),
          fmt::format("a multiple of train.micro_batch {}", train.micro_batch()));
}

void check_mesh(const proto::MeshConfig& mesh) {
  const auto require_ranks = [](std::string_view field, std::uint32_t least, std::uint32_t ranks) {
    if (ranks < least || ranks > kMostRanks) {
      reject_input("mesh.{}: {}; right is {} to {}", field, ranks, least, kMostRanks);
    }
  };
  require_ranks("data", 0, mesh.data());
  require_ranks("pipeline", 1, mesh.pipeline());
  require_ranks("tensor", 1, mesh.tensor());
  require_ranks("stages_per_rank", 0, mesh.stages_per_rank());
  const auto require_figure = [](std::string_view field, double value) {
    if (value == 0 || (value >= kLeastOfDevice && value <= kMostOfDevice)) return;
    reject_input("mesh.{}: {}; right is 0 for the device's own, or {} to {}", field, value, kLeastOfDevice,
                 kMostOfDevice);
  };
  require_figure("device_tflops", mesh.device_tflops());
  require_figure("link_gbps", mesh.link_gbps());
  require_figure("memory_gib", mesh.memory_gib());
}

void fill_mesh_and_output(proto::RunConfig& config) {
  proto::MeshConfig& mesh = *config.mutable_mesh();
  if (!mesh.has_data()) mesh.set_data(0);
  if (!mesh.has_pipeline()) mesh.set_pipeline(1);
  if (!mesh.has_tensor()) mesh.set_tensor(1);
  check_mesh(mesh);
  if (config.output().directory().empty()) config.mutable_output()->set_directory("out");
}

// Every field with its value, but optional ones and messages that are absent.
void print_fields(const pb::Message& message, int depth, std::string& text) {
  const pb::Reflection& reflection = *message.GetReflection();
  const pb::Descriptor& type = *message.GetDescriptor();
  const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
  for (int i = 0; i < type.field_count(); ++i) {
    const pb::FieldDescriptor* field = type.field(i);
    if (field->has_presence() && !reflection.HasField(message, field)) continue;
    if (field->message_type() != nullptr) {
      text += fmt::format("{}{} {{\n", indent, field->name());
      print_fields(reflection.GetMessage(message, field), depth + 1, text);
      text += indent + "}\n";
      continue;
    }
    std::string value;
    pb::TextFormat::PrintFieldValueToString(message, field, -1, &value);
    text += fmt::format("{}{}: {}\n", indent, field->name(), value);
  }
}

}  // namespace

proto::RunConfig parse_run_config(const std::string& name, const std::string& text,
                                  std::span<const std::string> overrides) {
  proto::RunConfig config;
  parse_message_text(name, text, config);
  for (const std::string& override_text : overrides) apply_override(override_text, config);
  check_enums(config, "");
  fill_model(config);
  fill_passes(config);
  fill_train(*config.mutable_train());
  check_train(config.train());
  fill_mesh_and_output(config);
  ModelConfig::from_proto(config.model());
  return config;
}

proto::RunConfig load_run_config(const std::filesystem::path& path, std::span<const std::string> overrides) {
  return parse_run_config(path.string(), read_file(path, kLargestConfigFile), overrides);
}

std::string to_full_text(const proto::RunConfig& config) {
  proto::RunConfig full = config;
  *full.mutable_model() = ModelConfig::from_proto(config.model()).to_proto();
  full.mutable_model()->set_kv_map(config.model().kv_map().empty() ? "none" : config.model().kv_map());
  // As it was written, not as f32 has it.
  full.mutable_model()->set_norm_epsilon(config.model().norm_epsilon() == 0 ? 1e-5 : config.model().norm_epsilon());
  full.mutable_model()->set_window_everywhere(config.model().window_everywhere());
  full.mutable_data();
  std::string text;
  print_fields(full, 0, text);
  return text;
}

std::string to_text(const proto::RunConfig& config) {
  std::string text;
  pb::TextFormat::Printer printer;
  printer.PrintToString(config, &text);
  return text;
}

}  // namespace kvloom
