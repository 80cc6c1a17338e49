// What is given to the stream of the device that stands for a GPU: done at once or, while a graph is being recorded,
// whenever that is launched.
#pragma once

#include <functional>

namespace kvloom::simt {

// `work` holds copies of all it needs but device memory.
void give(std::function<void()> work);

}  // namespace kvloom::simt
