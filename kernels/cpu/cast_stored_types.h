// Casts from and to the types that files hold and nothing computes on, f16 and f64; the rows of any cast.
#pragma once

#include "kernels/cpu/pieces.h"
#include "kernels/elementwise.h"

namespace kvloom::cpu {

// Any pair of f32, bf16, f16 and f64.
void cast_stored_types(const Cast& op);

// Calls convert(const In*, Out*, count) for pieces of rows: one long row is shared by threads too.
template <typename In, typename Out, typename Convert>
void for_row_pieces(const Cast& op, const Convert& convert) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.output_stride > 0 ? op.output_stride : op.columns;
  const std::int64_t pieces = pieces_of(op.columns);
#pragma omp parallel for schedule(static) if (op.rows * op.columns > 8 * kPiece)
  for (std::int64_t n = 0; n < op.rows * pieces; ++n) {
    const std::int64_t row = n / pieces;
    const std::int64_t begin = n % pieces * kPiece;
    convert(static_cast<const In*>(op.input) + row * in_stride + begin,
            static_cast<Out*>(op.output) + row * out_stride + begin, std::min(kPiece, op.columns - begin));
  }
}

}  // namespace kvloom::cpu
