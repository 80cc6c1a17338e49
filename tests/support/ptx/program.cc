#include "tests/support/ptx/program.h"

#include <fmt/format.h>

#include <bit>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>

#include "tests/support/ptx/statements.h"

namespace kvloom::ptx {
namespace {

std::size_t aligned(std::size_t offset, std::size_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

class Reader {
 public:
  Reader(std::string file, std::vector<std::string> lines) : file_(std::move(file)), lines_(std::move(lines)) {}

  void read(std::map<std::string, Kernel>& kernels) {
    for (const Statement& statement : statements_of(lines_)) take(statement, kernels);
  }

 private:
  void take(const Statement& statement, std::map<std::string, Kernel>& kernels) {
    const std::string& text = statement.text;
    line_ = statement.line;
    if (text == "{") {
      hidden_.emplace_back();
    } else if (text == "}") {
      for (const auto& [name, row] : hidden_.back()) names_[name] = row;
      hidden_.pop_back();
      if (hidden_.empty()) finish(kernels);
    } else if (hidden_.empty()) {
      outside(text);
    } else if (text.starts_with(".")) {
      declare(text);
    } else if (text.ends_with(":")) {
      labels_[text.substr(0, text.size() - 1)] = static_cast<int>(kernel_.steps.size());
    } else {
      instruction(text);
    }
  }

  void outside(const std::string& text) {
    if (text.find(".entry") != std::string::npos) return begin(text);
    if (text.find(".shared") != std::string::npos) {
      const Variable variable = variable_of(text.substr(text.find(".shared") + 7));
      module_shared_[variable.name] = variable;
    } else if (text.starts_with(".maxntid")) {
      kernel_.most_threads = std::atoi(text.c_str() + 8);
    } else if (text.starts_with(".global") || text.starts_with(".const") || text.starts_with(".func")) {
      fail_at("not provided for: " + text);
    }
  }

  void begin(const std::string& text) {
    kernel_ = {};
    names_.clear();
    labels_.clear();
    jumps_.clear();
    symbols_.clear();
    dynamic_.clear();
    kernel_.file = file_;
    const std::size_t open = text.find('(');
    const std::size_t entry = text.find(".entry") + 6;
    kernel_.name = plain_name(trimmed(std::string_view(text).substr(entry, open - entry)));
    const std::size_t close = text.rfind(')');
    std::size_t offset = 0;
    for (const std::string& parameter : split(std::string_view(text).substr(open + 1, close - open - 1), ',')) {
      const Variable variable = variable_of(parameter.substr(std::string_view(".param").size()));
      offset = aligned(offset, variable.alignment);
      symbols_[variable.name] = offset;
      kernel_.parameters.emplace_back(offset, variable.bytes);
      offset += variable.bytes;
    }
    kernel_.parameter_bytes = offset;
    const std::size_t limit = text.find(".maxntid");
    if (limit != std::string::npos) kernel_.most_threads = std::atoi(text.c_str() + limit + 8);
  }

  void declare(const std::string& text) {
    if (text.starts_with(".reg")) {
      std::istringstream stream(text.substr(4));
      std::string type, name;
      stream >> type >> name;
      const int bits = type == ".pred" ? 1 : static_cast<int>(8 * size_of_type(type));
      const std::size_t many = name.find('<');
      if (many == std::string::npos) {
        add_register(name, bits);
      } else {
        for (int i = 0; i < std::stoi(name.substr(many + 1)); ++i) {
          add_register(name.substr(0, many) + std::to_string(i), bits);
        }
      }
    } else if (text.starts_with(".shared")) {
      add_shared(variable_of(text.substr(7)));
    } else if (text.starts_with(".local")) {
      const Variable variable = variable_of(text.substr(6));
      kernel_.local_bytes = aligned(kernel_.local_bytes, variable.alignment);
      symbols_[variable.name] = kernel_.local_bytes;
      kernel_.local_bytes += variable.bytes;
    } else if (!text.starts_with(".pragma") && !text.starts_with(".loc")) {
      fail_at("not provided for: " + text);
    }
  }

  void add_register(const std::string& name, int bits) {
    if (const auto outer = names_.find(name); outer != names_.end()) hidden_.back()[name] = outer->second;
    names_[name] = kernel_.rows++;
    bits_.resize(static_cast<std::size_t>(kernel_.rows));
    bits_[static_cast<std::size_t>(names_[name])] = bits;
  }
  void add_shared(const Variable& variable) {
    kernel_.shared_bytes = aligned(kernel_.shared_bytes, variable.alignment);
    symbols_[variable.name] = kernel_.shared_bytes;
    kernel_.shared_bytes += variable.bytes;
  }

  int constant(std::uint64_t value) {
    const auto [found, is_new] = names_.try_emplace("#" + std::to_string(value), kernel_.rows);
    if (is_new) kernel_.constants.emplace_back(kernel_.rows++, value);
    return found->second;
  }
  int special(const std::string& name, Special what) {
    const auto [found, is_new] = names_.try_emplace(name, kernel_.rows);
    if (is_new) kernel_.specials.emplace_back(kernel_.rows++, what);
    return found->second;
  }

  static std::optional<std::uint64_t> number_of(const std::string& text) {
    if (text.starts_with("0f") || text.starts_with("0d")) return std::stoull(text.substr(2), nullptr, 16);
    const char first = text.starts_with("-") && text.size() > 1 ? text[1] : text[0];
    if (first < '0' || first > '9') return std::nullopt;
    return text[0] == '-' ? static_cast<std::uint64_t>(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
  }

  int row_of(const std::string& operand) {
    if (const auto number = number_of(operand); number.has_value()) return constant(*number);
    if (operand == "%tid.x") return special(operand, Special::kThread);
    if (operand == "%ntid.x") return special(operand, Special::kThreads);
    if (operand == "%ctaid.x") return special(operand, Special::kBlock);
    if (operand == "%nctaid.x") return special(operand, Special::kBlocks);
    if (const auto found = names_.find(operand); found != names_.end()) return found->second;
    if (const auto found = module_shared_.find(operand); found != module_shared_.end() && !symbols_.contains(operand)) {
      if (found->second.bytes == 0) {  // dynamic: after all that is declared, which is not known yet
        const auto [dynamic, is_new] = names_.try_emplace(operand, kernel_.rows);
        if (is_new) dynamic_.push_back(kernel_.rows++);
        return dynamic->second;
      }
      add_shared(found->second);
    }
    const auto symbol = symbols_.find(operand);
    if (symbol == symbols_.end()) fail_at("no such operand: " + operand);
    return constant(symbol->second);
  }

  Place place_of(const std::string& operand) {  // "[%rd1+16]"
    const std::string inside(trimmed(std::string_view(operand).substr(1, operand.size() - 2)));
    const std::size_t plus = inside.find('+');
    if (plus == std::string::npos) return {row_of(inside), 0};
    return {row_of(inside.substr(0, plus)), std::stoll(inside.substr(plus + 1))};
  }

  // Rows of an operand that is one register or a vector of them; "%r1|%p1" is two.
  std::vector<int> rows_of(const std::string& operand) {
    std::vector<int> rows;
    const bool is_vector = operand.starts_with('{');
    const std::string inside = is_vector ? operand.substr(1, operand.size() - 2) : operand;
    for (const std::string& part : split(inside, is_vector ? ',' : '|')) rows.push_back(row_of(part));
    return rows;
  }

  void instruction(std::string text) {
    Step step;
    step.line = line_;
    if (text[0] == '@') {
      const std::size_t space = text.find_first_of(" \t");
      step.guard_negated = text[1] == '!';
      step.guard = row_of(text.substr(step.guard_negated ? 2 : 1, space - (step.guard_negated ? 2 : 1)));
      text = trimmed(std::string_view(text).substr(space));
    }
    const std::size_t space = std::min(text.find_first_of(" \t"), text.size());
    const std::vector<std::string> words = split(text.substr(0, space), '.');
    const std::vector<std::string> operands = split(std::string_view(text).substr(space), ',');
    step.action = action_of(words, step);
    if (step.action == nullptr && step.kind == Kind::kPlain) fail_at("unknown instruction");
    if (step.kind == Kind::kBranch) {
      jumps_.emplace_back(kernel_.steps.size(), operands.at(0));
    } else {
      add_operands(words, operands, step);
    }
    kernel_.steps.push_back(std::move(step));
  }

  void add_operands(const std::vector<std::string>& words, const std::vector<std::string>& operands, Step& step) {
    const bool writes_register = words[0] != "st" && words[0] != "cp" && words[0] != "ret" && words[0] != "exit" &&
                                 !(words[0] == "bar" && words[1] != "red");
    for (std::size_t i = 0; i < operands.size(); ++i) {
      if (operands[i].starts_with('[')) {
        step.places.push_back(place_of(operands[i]));
      } else if (i == 0 && writes_register) {
        step.to = rows_of(operands[i]);
        step.to_bits = bits_.at(static_cast<std::size_t>(step.to[0]));
      } else if (words[0] == "cp" && words[2] == "wait_group") {
        step.count = std::stoi(operands[i]);
      } else {
        for (const int row : rows_of(operands[i])) step.from.push_back(row);
      }
    }
  }

  void finish(std::map<std::string, Kernel>& kernels) {
    for (const auto& [step, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail_at("no such label: " + label);
      kernel_.steps[step].target = found->second;
    }
    kernel_.shared_bytes = aligned(kernel_.shared_bytes, 16);
    for (const int row : dynamic_) kernel_.constants.emplace_back(row, kernel_.shared_bytes);
    // nvcc leaves the end away where it holds it for unreachable.
    kernel_.steps.push_back({.kind = Kind::kBeyond, .line = line_});
    kernel_.lines = lines_;
    const std::string name = kernel_.name;
    if (!kernels.emplace(name, std::move(kernel_)).second) stop("there are two kernels " + name);
  }

  [[noreturn]] void fail_at(const std::string& message) const {
    stop(fmt::format("{}:{}: {}: {}", file_, line_ + 1, message, trimmed(lines_[static_cast<std::size_t>(line_)])));
  }

  std::string file_;
  std::vector<std::string> lines_;
  int line_ = 0;
  std::vector<std::map<std::string, int>> hidden_;  // by each scope: names of those around it
  std::map<std::string, Variable> module_shared_;
  // Of the kernel that is being read.
  Kernel kernel_;
  std::map<std::string, int> names_;  // registers, constants and specials: rows
  std::vector<int> bits_;             // of registers, by row
  std::map<std::string, std::size_t> symbols_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<std::size_t, std::string>> jumps_;
  std::vector<int> dynamic_;
};

}  // namespace

std::string plain_name(std::string_view mangled) {
  // _ZN6kvloom4cuda41_GLOBAL__N__0434863f_9_sample_cu_5f20cc1b13sample_tokens...
  constexpr std::string_view kUnnamed = "_GLOBAL__N__";
  constexpr std::size_t kHash = 8;
  const std::size_t at = mangled.find(kUnnamed);
  if (at == std::string_view::npos) return std::string(mangled);
  const std::size_t before = mangled.find_last_not_of("0123456789", at - 1) + 1;
  const std::size_t file = mangled.find('_', at + kUnnamed.size() + kHash + 1) + 1;
  const std::size_t end = mangled.find("_cu_", file);
  if (end == std::string_view::npos) return std::string(mangled);
  return std::string(mangled.substr(0, before)) + std::string(mangled.substr(file, end - file)) +
         "::" + std::string(mangled.substr(end + 4 + kHash));
}

std::map<std::string, Kernel> read_program(const std::vector<std::filesystem::path>& files) {
  std::map<std::string, Kernel> kernels;
  for (const std::filesystem::path& path : files) {
    std::ifstream file(path);
    if (!file) stop("cannot be read: " + path.string());
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    Reader(path.filename().string(), std::move(lines)).read(kernels);
  }
  return kernels;
}

void stop(const std::string& message) {
  std::fprintf(stderr, "ptx: %s\n", message.c_str());
  std::abort();
}

}  // namespace kvloom::ptx
