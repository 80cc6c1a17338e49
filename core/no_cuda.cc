// In place of cuda/ when the build has no CUDA. Nothing here can be constructed, so most of it is never reached.
#include "core/cuda_allocator.h"
#include "core/cuda_graph.h"
#include "core/cuda_stream.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

[[noreturn]] void no_cuda() { fail("this build has no CUDA: build with -DKVLOOM_CUDA=ON"); }

}  // namespace

CudaPresence cuda_presence() { return {0, "this build has no CUDA (KVLOOM_CUDA)"}; }

GpuTraits gpu_traits(int) { no_cuda(); }

void enter_cuda_device(int) { no_cuda(); }
std::size_t free_device_bytes(int) { no_cuda(); }

CudaEvent::CudaEvent(int) { no_cuda(); }
CudaEvent::~CudaEvent() = default;
void CudaEvent::record(const CudaStream&) { no_cuda(); }
bool CudaEvent::reached() const { no_cuda(); }
void CudaEvent::wait() const { no_cuda(); }

CudaStream::CudaStream(int device) : device_(device) { no_cuda(); }
CudaStream::~CudaStream() = default;
void CudaStream::wait_for(const CudaEvent&) const { no_cuda(); }
void CudaStream::wait_for(const CudaStream&) const { no_cuda(); }
bool CudaStream::idle() const { no_cuda(); }
bool CudaStream::is_recording() const { no_cuda(); }
void CudaStream::synchronize() const { no_cuda(); }
void CudaStream::copy(void*, const void*, std::size_t) const { no_cuda(); }
void CudaStream::fill_zero(void*, std::size_t) const { no_cuda(); }

StreamBuffer::StreamBuffer(const CudaStream& stream, std::size_t, const MakeRoom&) : stream_(stream) { no_cuda(); }
StreamBuffer::~StreamBuffer() = default;

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) { no_cuda(); }
PinnedBuffer::~PinnedBuffer() = default;

bool is_device_memory(const void*) { return false; }

struct CachingCudaAllocator::Arena {};
CachingCudaAllocator::CachingCudaAllocator(int device) : index_(device), stream_(device) { no_cuda(); }
void CachingCudaAllocator::DeleteQueue::operator()(cuda::Queue*) const {}
CachingCudaAllocator::~CachingCudaAllocator() = default;
void* CachingCudaAllocator::allocate(std::size_t) { no_cuda(); }
void CachingCudaAllocator::release(void*, std::size_t) noexcept {}
AllocatorStatistics CachingCudaAllocator::statistics() const { no_cuda(); }
std::size_t CachingCudaAllocator::peak_taken_bytes() const { no_cuda(); }
void CachingCudaAllocator::trim() { no_cuda(); }
std::string CachingCudaAllocator::set_purpose(std::string) { no_cuda(); }
CachingCudaAllocator::Arena& CachingCudaAllocator::open_arena() { no_cuda(); }
void CachingCudaAllocator::close_arena(Arena&) noexcept {}
CachingCudaAllocator::Arena* CachingCudaAllocator::use_arena(Arena*) { no_cuda(); }

CudaArena::CudaArena(CachingCudaAllocator& allocator) : allocator_(allocator), arena_(allocator.open_arena()) {}
CudaArena::~CudaArena() = default;
CudaArena::Use::Use(const CudaArena& arena) : allocator_(arena.allocator_), former_(allocator_.use_arena(nullptr)) {}
CudaArena::Use::~Use() = default;

CudaGraph::CudaGraph(const CudaStream&, const std::function<void()>&) { no_cuda(); }
CudaGraph::~CudaGraph() = default;
void CudaGraph::launch(const CudaStream&) const { no_cuda(); }

}  // namespace kvloom
