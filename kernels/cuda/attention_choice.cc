#include "kernels/attention_choice.h"

#include <utility>

#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/queue.h"
#include "kernels/error.h"

namespace kvloom::cuda {

void choose_attention(Queue& queue, AttentionChoice choice, std::function<void(const std::string&)> log) {
  if (choice == AttentionChoice::kCudnn) {
    try {
      queue.set_cudnn_attention(std::make_unique<CudnnAttention>(queue, std::move(log)));
    } catch (const Error& error) {
      reject_input("--attention cudnn: {}", error.what());
    }
    return;
  }
  queue.set_cudnn_attention(nullptr);
  log(choice == AttentionChoice::kAuto ? "attention: kvloom's own kernels; --attention cudnn for cuDNN's"
                                       : "attention: kvloom's own kernels");
}

}  // namespace kvloom::cuda
