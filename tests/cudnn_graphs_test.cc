// The graphs that cuDNN is given, for a GPU that is only described: cuDNN itself says whether they are well formed.
// Whether it has plans for them takes a driver, and what those compute a GPU (cuda_attention_by_cudnn_test).
#include <gtest/gtest.h>

#include <memory>

#include "core/file.h"
#include "kernels/cuda/cudnn_attention_graphs.h"
#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom::cuda {
namespace {

class CudnnGraphs : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      cudnn_ = std::make_unique<Cudnn>();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    target_ =
        std::make_unique<CudnnTarget>(*cudnn_, read_file(KVLOOM_SOURCE_DIR "/tests/fixtures/cudnn/h100.json", 4096));
  }
  static CudnnAttentionShape random_shape(test::Random& random) {
    CudnnAttentionShape shape{.batch = random.integer(1, 4),
                              .length = random.integer(1, 3000),
                              .kv_heads = random.integer(1, 4),
                              .head_dim = 8 * random.integer(1, 16),
                              .scale = 0.125f};
    shape.heads = shape.kv_heads * random.integer(1, 8);
    shape.window = random.flip() ? random.integer(1, 400) : 0;
    shape.query_stride = shape.output_stride = shape.grad_query_stride = shape.heads * shape.head_dim;
    shape.key_stride = shape.kv_heads * shape.head_dim;
    shape.query_batch_stride = shape.output_batch_stride = shape.grad_query_batch_stride =
        (shape.length + 1) * shape.query_stride;
    shape.key_batch_stride = shape.grad_key_batch_stride = (shape.length + 1) * shape.key_stride;
    return shape;
  }

  std::unique_ptr<Cudnn> cudnn_;
  std::unique_ptr<CudnnTarget> target_;
};

TEST_F(CudnnGraphs, AreWellFormedForwardAndBackward) {
  test::Random random;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const CudnnAttentionShape shape = random_shape(random);
    EXPECT_NO_THROW(plan_forward(*target_, shape)) << "length " << shape.length << " window " << shape.window;
    EXPECT_NO_THROW(plan_backward(*target_, shape)) << "length " << shape.length << " window " << shape.window;
  }
}

TEST_F(CudnnGraphs, OnesThatDoNotFitTogetherAreRefusedWithCudnnsWords) {
  CudnnGraph graph(*cudnn_);
  const CudnnTensor a = graph.tensor({1, 1, 64, 32}, {2048, 2048, 32, 1}, CUDNN_DATA_BFLOAT16);
  const CudnnTensor b = graph.tensor({1, 1, 48, 64}, {3072, 3072, 64, 1}, CUDNN_DATA_BFLOAT16);
  const CudnnTensor c = graph.between({1, 1, 64, 64});
  EXPECT_THROW(graph.matmul(a, b, c), Error);
}

TEST_F(CudnnGraphs, ADeviceThatIsNotDescribedInFullIsRefused) { EXPECT_THROW(CudnnTarget(*cudnn_, "{}"), Error); }

}  // namespace
}  // namespace kvloom::cuda
