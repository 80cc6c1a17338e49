// Ranks that are processes with one GPU each, over NCCL.
//
// Buffers are the device's. A call takes its place in the order of the given compute stream: it reads what that stream
// was told to write before, and what the stream is given afterwards sees its result; the host does not wait. The same
// holds of a message: what `Transfer::wait` waits for on the host is that the message is on its way, and the compute
// stream waits for the rest. A collective that was only started runs beside the compute stream, which waits for it
// where its `wait` stands. Buffers of the host are taken too, through pinned staging; then the host waits, and the
// result is there when the call, or `wait`, returns. So everything that works on a Communicator works on this one.
//
// Collectives of a communicator run on a stream and an NCCL communicator of their own. Messages do not: for each
// ordered pair of ranks that talk there is one more NCCL communicator of these two, with a stream, opened by the first
// message. With one for all peers, a receive from one rank would hold up those from others that were sent, and ranks
// that wait for one another around a ring of such queues would stop for good; a pair's queue holds nothing but what its
// sender sent, in that order. A header goes ahead by TCP; a thread of the receiver starts NCCL's receive when it comes,
// into the buffer that was posted for this communicator and tag, or into memory of its own when none was. So no GPU
// waits for a message that nobody has sent, a send never waits for its receive to be posted, tags may be received in
// any order, and a message of another length is refused instead of hanging.
//
// NCCL's errors on the way and whatever is stuck for longer than the limit abort every NCCL communicator of this rank;
// each later call, and each that waits, throws Error with the reason.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "core/cuda_stream.h"
#include "parallel/communicator.h"

namespace kvloom {

struct NcclOptions {
  // How long an operation may run on the device, and a rank wait for another, before all is aborted; a communicator's
  // start may take a minute at the least.
  std::chrono::milliseconds limit = std::chrono::minutes(10);
  // Called once with the reason, after the abort, by whichever thread found it: the launcher takes the job down.
  std::function<void(const std::string&)> on_failure;
  // Blocks of the device that a message may keep busy.
  int message_blocks = 4;
  // Asked where the device has no memory left for what is exchanged, or little for a communicator of NCCL's.
  MakeRoom make_room;
};

// The ranks of a communicator that lives on the host (MPI's world) as ranks over NCCL, with the same numbers; all call
// it. The rest as below.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& ranks, const CudaStream& compute,
                                                     const NcclOptions& options = {});

// What rank 0 makes and every rank must have, by `meet` (rendezvous.h), to make one world where there is no such
// communicator.
std::string make_nccl_id();

// Joins the world of `size` ranks on the compute stream's device; every rank calls it. The stream outlives what is
// returned. Throws Error naming KVLOOM_CUDA when the build has none.
std::unique_ptr<Communicator> make_nccl_communicator(const std::string& id, int rank, int size,
                                                     const CudaStream& compute, const NcclOptions& options = {});

}  // namespace kvloom
