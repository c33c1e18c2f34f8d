// A small pool of threads that lives as long as the process.
#pragma once

#include <functional>

namespace cris {

// Processors this process may use.
int available_threads();

// Calls task(0) ... task(count - 1), each once, on at most `threads` threads, the caller among
// them; returns when all are done. If another caller holds the pool, the caller does all of its
// own work alone. The first exception of a task is thrown again here.
void parallel(int count, int threads, const std::function<void(int)>& task);

}  // namespace cris
