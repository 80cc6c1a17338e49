// What a template's loops and namespaces are.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "infer/text/jinja_runtime.h"

namespace kvloom::jinja {

// The one value that a template changes in place.
class Namespace final : public Object {
 public:
  std::string type() const override { return "namespace"; }
  std::optional<Value> attribute(std::string_view name) override;
  void set(std::string_view name, const Value& value);
  void clear() { names_ = {}; }

 private:
  std::vector<std::pair<std::string, Value>> names_;
};

// A loop's items, and `loop` in it. Items are looked at one ahead at most, unless the loop's length is asked for:
// whether one is accepted may depend on the rounds before.
class Loop final : public Object, public std::enable_shared_from_this<Loop> {
 public:
  using Accepts = std::function<bool(const Value&)>;       // empty: all
  using Again = std::function<Value(const Value& items)>;  // empty: the loop is not recursive

  Loop(Runtime& runtime, std::shared_ptr<const Sequence> items, Accepts accepts, Again again, int depth)
      : runtime_(runtime),
        items_(std::move(items)),
        accepts_(std::move(accepts)),
        again_(std::move(again)),
        depth_(depth) {}

  // To the next item, the first one at first; false when there is none.
  bool advance();
  const Value& current() const { return accepted_[at_]; }
  // What it holds of the template's frames is let go of.
  void end();

  std::string type() const override { return "LoopContext"; }
  std::optional<Value> attribute(std::string_view name) override;
  bool is_callable() const override { return static_cast<bool>(again_); }
  Value call(const Arguments& arguments) override;

 private:
  bool have(std::size_t place);
  std::size_t length();
  Value cycled(const Arguments& arguments) const;
  bool changed(const Arguments& arguments);

  Runtime& runtime_;
  std::shared_ptr<const Sequence> items_;
  Accepts accepts_;
  Again again_;
  int depth_;
  List accepted_;
  std::size_t scanned_ = 0;  // of `items_`
  std::size_t at_ = 0;
  bool begun_ = false;
  std::optional<List> last_changed_;
};

}  // namespace kvloom::jinja
