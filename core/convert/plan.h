// A ConversionPlan applied to a source: checked as a whole first, then computed rectangle by rectangle, so that no more
// of a model is in memory than is being written.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/convert/tensor_source.h"
#include "core/tensor.h"
#include "kernels/dtype.h"
#include "proto/conversion.pb.h"

namespace kvloom {

inline constexpr std::uint32_t kPlanFormat = 1;
inline constexpr std::uint64_t kLargestPlan = std::uint64_t{256} << 20;  // bytes of text

// A plan in Protocol Buffers text format; `where` is the file for messages. Throws InputError with line and column.
proto::ConversionPlan parse_plan(const std::string& text, const std::string& where);
std::string to_text(const proto::ConversionPlan& plan);

// What a plan wants and the source lacks, and what the source has and the plan does not mention.
struct PlanFit {
  std::vector<std::string> missing;
  std::vector<std::string> unclaimed;
};
PlanFit fit_of(const proto::ConversionPlan& plan, const TensorSource& source);

// A tensor as the plan makes it.
struct PlannedTensor {
  std::string name;
  Shape shape;
  DType dtype;
};

// A tensor of which finite values became infinite.
struct Overflow {
  std::int64_t values = 0;
  double largest = 0;  // magnitude in the source
};

class PlannedConversion {
 public:
  // The source outlives it. Throws InputError, naming the tensors, unless the plan fits the source, every slice lies
  // inside of its tensor, shapes go together and dtypes can be cast.
  PlannedConversion(proto::ConversionPlan plan, TensorSource& source);

  const proto::ConversionPlan& plan() const { return plan_; }
  std::span<const PlannedTensor> tensors() const { return tensors_; }

  // out = a rectangle of tensors()[index], row-major. Besides that it needs as much memory again for each input.
  void compute(std::size_t index, const Rectangle& wanted, std::span<std::byte> out);

  // By the names of what was computed so far: finite values that a cast made infinite.
  const std::map<std::string, Overflow>& overflows() const { return overflows_; }
  void forget_overflows() { overflows_.clear(); }

  // Reads the tensors that must hold zeros alone. Throws InputError naming the first that does not.
  void check_left_over();

 private:
  struct Input {
    const SourceTensor* tensor;
    Rectangle slice;  // of the tensor
    Shape shape;      // as the operation sees it: of the slice, or its transpose
    bool transpose;
  };
  struct Step {
    proto::TargetTensor::Operation operation;
    std::size_t axis;
    std::vector<Input> inputs;
  };

  void cast(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::int64_t count);
  Step resolve(const proto::TargetTensor& target);
  Input resolve_input(const proto::TargetTensor& target, const proto::SourceSlice& slice) const;
  void read_input(const Input& input, const Rectangle& wanted, DType dtype, std::byte* out);
  void concatenate(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out);
  void average(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out);
  void pad(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out);
  const std::vector<double>& mean_row(const Input& input);

  proto::ConversionPlan plan_;
  TensorSource& source_;
  std::vector<PlannedTensor> tensors_;
  std::vector<Step> steps_;
  std::string computing_;                                 // the tensor
  std::map<std::string, std::vector<double>> mean_rows_;  // by tensor of the source
  std::map<std::string, Overflow> overflows_;
};

// The rectangles that cut a tensor along its first axis into blocks of at most `bytes`, or of one row.
std::vector<Rectangle> blocks_of(const Rectangle& whole, DType dtype, std::size_t bytes);

// to[i] = from[i], cast as kernels/elementwise.h has it, any of f32, bf16, f16 and f64 to f32, bf16, f16.
void cast_elements(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::int64_t count);
bool is_castable(DType from, DType to);

// Of such a cast that was made: the finite values that became infinite.
Overflow overflow_of(const std::byte* from, DType from_dtype, const std::byte* to, DType to_dtype, std::int64_t count);

}  // namespace kvloom
