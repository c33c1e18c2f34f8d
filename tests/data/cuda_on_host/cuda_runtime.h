// Enough of CUDA's language and runtime to run a kernel's blocks on the host, one thread of the
// host for each thread of a block. For tests: it checks logic, not speed or memory ordering.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct HostIndex {
  int x, y, z;
};
inline thread_local HostIndex threadIdx, blockIdx;

// What the threads of the running block share.
struct HostBlock {
  static constexpr int kWarp = 32;
  explicit HostBlock(int threads) : all(threads), exchange(static_cast<size_t>(threads)) {
    for (int i = 0; i < threads; i += kWarp)
      warps.push_back(std::make_unique<std::barrier<>>(kWarp));
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<int64_t> exchange;
};
inline HostBlock* host_block = nullptr;

inline void __syncthreads() { host_block->all.arrive_and_wait(); }

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int thread = threadIdx.x, lane = thread % HostBlock::kWarp;
  auto& warp = *host_block->warps[static_cast<size_t>(thread / HostBlock::kWarp)];
  host_block->exchange[static_cast<size_t>(thread)] = value;
  warp.arrive_and_wait();
  const int from = lane + distance < HostBlock::kWarp ? thread + distance : thread;
  const T result = static_cast<T>(host_block->exchange[static_cast<size_t>(from)]);
  warp.arrive_and_wait();
  return result;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(unsigned value) { return value ? __builtin_clz(value) : 32; }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

inline std::mutex host_atomics;
template <class T, class Change>
void host_atomic(T* address, Change change) {
  const std::lock_guard<std::mutex> lock(host_atomics);
  *address = change(*address);
}
template <class T>
void atomicAdd(T* address, T value) {
  host_atomic(address, [=](T old) { return old + value; });
}
template <class T>
void atomicMin(T* address, T value) {
  host_atomic(address, [=](T old) { return min(old, value); });
}
template <class T>
void atomicMax(T* address, T value) {
  host_atomic(address, [=](T old) { return max(old, value); });
}

template <class Kernel, class... Arguments>
void host_launch(dim3 grid, int threads, Kernel kernel, const Arguments&... arguments) {
  HostBlock block(threads);
  host_block = &block;
  std::vector<std::thread> running;
  for (int thread = 0; thread < threads; ++thread)
    running.emplace_back([&, thread] {
      threadIdx = {thread, 0, 0};
      for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
          for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = {static_cast<int>(x), static_cast<int>(y), static_cast<int>(z)};
            kernel(arguments...);
            block.all.arrive_and_wait();
          }
    });
  for (std::thread& thread : running) thread.join();
}

enum cudaError_t { cudaSuccess = 0 };
enum cudaMemoryType { cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes*, const void*) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
