#include "infer/text/jinja_objects.h"

#include <algorithm>
#include <array>

namespace kvloom::jinja {
namespace {

// A text between rounds: nothing at first.
class Joiner final : public Object {
 public:
  explicit Joiner(std::string text) : text_(std::move(text)) {}
  std::string type() const override { return "Joiner"; }
  bool is_callable() const override { return true; }
  Value call(const Arguments&) override { return std::exchange(used_, true) ? Value(text_) : Value(""); }

 private:
  std::string text_;
  bool used_ = false;
};

class Cycler final : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(List items) : items_(std::move(items)) {}
  std::string type() const override { return "Cycler"; }
  std::optional<Value> attribute(std::string_view name) override {
    if (name == "current") return items_[at_];
    if (name != "next" && name != "reset") return std::nullopt;
    return function(std::string(name), [self = shared_from_this(), resets = name == "reset"](const Arguments&) {
      const Value current = self->items_[self->at_];
      self->at_ = resets ? 0 : (self->at_ + 1) % self->items_.size();
      return resets ? Value() : current;
    });
  }

 private:
  List items_;
  std::size_t at_ = 0;
};

Value object_value(std::shared_ptr<Object> object) { return object; }

Value make_range(Runtime& runtime, const Arguments& arguments) {
  constexpr std::int64_t kMost = 100'000;
  const Bound given = bind("range", arguments, {"start", "stop", "step"}, 1);
  const std::int64_t first = integer_argument("range", given[0]);
  const std::int64_t start = given[1].has_value() ? first : 0;
  const std::int64_t stop = given[1].has_value() ? integer_argument("range", given[1]) : first;
  const std::int64_t step = given[2].has_value() ? integer_argument("range", given[2]) : 1;
  if (step == 0) fault("range() arg 3 must not be zero");
  constexpr std::int64_t kFar = std::int64_t{1} << 60;
  for (const std::int64_t number : {start, stop, step}) {
    if (number > kFar || number < -kFar) fault("a number is too large");
  }
  List items;
  for (std::int64_t at = start; step > 0 ? at < stop : at > stop; at += step) {
    if (static_cast<std::int64_t>(items.size()) >= kMost) fault("a range of more than {} numbers", kMost);
    items.emplace_back(at);
  }
  return runtime.list(std::move(items), SequenceKind::kRange);
}

// Pairs of a dict, or of named arguments, or of both.
Dict named_values(const Arguments& arguments, std::string_view callee) {
  Dict dict;
  if (arguments.positional.size() > 1) fault("{}() takes one positional argument at most", callee);
  for (const Value& given : arguments.positional) {
    if (!given.is_dict()) fault("{}() wants a dict, not '{}'", callee, type_name(given));
    for (const auto& [key, value] : given.dict().entries()) dict.set(key, value);
  }
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return dict;
}

Value make_namespace(Runtime& runtime, const Arguments& arguments) {
  const auto space = std::make_shared<Namespace>();
  runtime.charge(64);
  runtime.keep(space);
  const Dict given = named_values(arguments, "namespace");
  for (const auto& [key, value] : given.entries()) {
    if (!key.is_text()) fault("namespace() wants texts as names, not '{}'", type_name(key));
    space->set(key.text(), value);
  }
  return object_value(space);
}

Value raise(Runtime& runtime, const Arguments& arguments) {
  const Bound given = bind("raise_exception", arguments, {"message"}, 1);
  fault("{}", shown(runtime, *given[0]));
}

Value formatted_time(Runtime& runtime, const Arguments& arguments) {
  const Bound given = bind("strftime_now", arguments, {"format"}, 1);
  const std::string format = text_argument("strftime_now", given[0]) + "|";  // so that a text is never empty
  if (format.size() > 256) fault("strftime_now: a format of {} bytes; right are 255 at most", format.size() - 1);
  std::array<char, 4096> buffer;
  std::string text(buffer.data(), std::strftime(buffer.data(), buffer.size(), format.c_str(), &runtime.now()));
  if (text.empty()) fault("strftime_now: the format '{}' makes too long a text", given[0]->text());
  text.pop_back();
  return runtime.text(std::move(text));
}

Value make_joiner(Runtime& runtime, const Arguments& arguments) {
  const Bound given = bind("joiner", arguments, {"sep"});
  return object_value(std::make_shared<Joiner>(given[0].has_value() ? shown(runtime, *given[0]) : ", "));
}

Value make_cycler(Runtime&, const Arguments& arguments) {
  if (arguments.positional.empty()) fault("at least one item has to be provided");
  return object_value(std::make_shared<Cycler>(arguments.positional));
}

Value make_dict_of_names(Runtime& runtime, const Arguments& arguments) {
  Dict dict = named_values(arguments, "dict");
  runtime.charge(1 + 4 * dict.entries().size());
  return make_dict(std::move(dict));
}

constexpr std::array<std::pair<std::string_view, Value (*)(Runtime&, const Arguments&)>, 7> kFunctions = {
    {{"range", make_range},
     {"namespace", make_namespace},
     {"dict", make_dict_of_names},
     {"joiner", make_joiner},
     {"cycler", make_cycler},
     {"raise_exception", raise},
     {"strftime_now", formatted_time}}};

}  // namespace

std::optional<Value> find_function(Runtime& runtime, std::string_view name) {
  const auto found = std::ranges::find(kFunctions, name, [](const auto& entry) { return entry.first; });
  if (found == kFunctions.end()) return std::nullopt;
  return function(std::string(name),
                  [&runtime, run = found->second](const Arguments& arguments) { return run(runtime, arguments); });
}

std::optional<Value> Namespace::attribute(std::string_view name) {
  const auto found = std::ranges::find(names_, name, [](const auto& entry) { return std::string_view(entry.first); });
  if (found == names_.end()) return std::nullopt;
  return found->second;
}

void Namespace::set(std::string_view name, const Value& value) {
  const auto found = std::ranges::find(names_, name, [](const auto& entry) { return std::string_view(entry.first); });
  if (found != names_.end()) {
    found->second = value;
  } else {
    names_.emplace_back(name, value);
  }
}

bool Loop::have(std::size_t place) {
  while (accepted_.size() <= place && scanned_ < items_->items.size()) {
    const Value& item = items_->items[scanned_++];
    if (!accepts_ || accepts_(item)) accepted_.push_back(item);
  }
  return place < accepted_.size();
}

std::size_t Loop::length() {
  have(items_->items.size());
  return accepted_.size();
}

bool Loop::advance() {
  if (std::exchange(begun_, true)) ++at_;
  return have(at_);
}

void Loop::end() {
  accepts_ = nullptr;
  again_ = nullptr;
}

Value Loop::cycled(const Arguments& arguments) const {
  if (arguments.positional.empty()) fault("no items for cycling given");
  return arguments.positional[at_ % arguments.positional.size()];
}

bool Loop::changed(const Arguments& arguments) {
  const bool same =
      last_changed_.has_value() && equal(runtime_, make_sequence(*last_changed_), make_sequence(arguments.positional));
  last_changed_ = arguments.positional;
  return !same;
}

std::optional<Value> Loop::attribute(std::string_view name) {
  if (name == "index") return at_ + 1;
  if (name == "index0") return at_;
  if (name == "first") return at_ == 0;
  if (name == "last") return !have(at_ + 1);
  if (name == "length") return length();
  if (name == "revindex") return length() - at_;
  if (name == "revindex0") return length() - at_ - 1;
  if (name == "depth") return depth_ + 1;
  if (name == "depth0") return depth_;
  if (name == "previtem") return at_ == 0 ? undefined("there is no previous item") : accepted_[at_ - 1];
  if (name == "nextitem") return have(at_ + 1) ? accepted_[at_ + 1] : undefined("there is no next item");
  if (name != "cycle" && name != "changed") return std::nullopt;
  return function(std::string(name), [self = shared_from_this(), cycles = name == "cycle"](const Arguments& given) {
    return cycles ? self->cycled(given) : Value(self->changed(given));
  });
}

Value Loop::call(const Arguments& arguments) {
  if (!again_) fault("the loop must have the 'recursive' marker to be called recursively.");
  const Bound given = bind("loop", arguments, {"iterable"}, 1);
  return again_(*given[0]);
}

}  // namespace kvloom::jinja
