// Ranks that are processes under MPI.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace kvloom {

// Throws Error naming the operation, the rank and MPI's reason unless `code` is success. `peer` < 0: none.
void check_mpi(int code, const char* operation, int rank, int peer = -1);

// What reductions write into that were under way when their rank failed. MPI offers no way to end them, so the buffers
// stay until MPI has ended.
using UnfinishedBuffers = std::list<std::vector<float>>;

class MpiCommunicator final : public Communicator {
 public:
  // Owns `communicator`, which must return its errors. No MPI call moves more than `largest_count` elements.
  // `unfinished` is held beyond this by whoever ends MPI.
  MpiCommunicator(MPI_Comm communicator, std::int64_t largest_count, std::shared_ptr<UnfinishedBuffers> unfinished);
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void barrier() override;

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override;
  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype, Reduction reduction) override;
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override;
  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override;
  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override;
  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override;
  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override;
  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override;
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override;
  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override;
  std::unique_ptr<Communicator> do_split(int color, int key) override;

 private:
  // MPI_Ireduce of any count; `output` counts on the root only.
  void start_reduce(class MpiCollective& state, const void* input, void* output, std::size_t count, DType dtype,
                    Reduction reduction, int root);
  bool in_one_call(std::size_t count) const { return count <= largest_count_; }
  void check(int code, const char* operation, int peer = -1) const { check_mpi(code, operation, rank_, peer); }

  MPI_Comm communicator_;
  std::size_t largest_count_;
  std::shared_ptr<UnfinishedBuffers> unfinished_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace kvloom
