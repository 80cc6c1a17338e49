#include "parallel/sent_messages.h"

#include "kernels/error.h"

namespace kvloom {

std::string receive_text(Communicator& ranks, std::int64_t length, int from, int tag) {
  if (length < 0) fail("a message from rank {} says that it has {} bytes", from, length);
  std::string text(static_cast<std::size_t>(length), '\0');
  if (!text.empty()) ranks.receive(as_bytes(text), from, tag);
  return text;
}

}  // namespace kvloom
