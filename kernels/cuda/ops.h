// The operations on a CUDA device. Nothing here allocates, synchronises or reads device memory on
// the host, so every call can be captured in a graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../filter.h"

struct CUstream_st;

namespace cris {

using CudaStream = CUstream_st*;

// One picture, all pointers on the device; a null output is not wanted.
struct CudaMaskItem {
  const void* logits;    // (source_height, source_width), float or IEEE half
  uint8_t* mask;         // (height, width), 0 or 1
  uint8_t* packed;       // (height, ceil(width / 8)), first pixel in the highest bit
  float* probabilities;  // (height, width)
  long long* stats;      // area, x0, y0, x1, y1 (exclusive); x0 >= x1 for an empty mask
  Axis y, x;
  int height, width;
  float threshold;
};

// Bytes of scratch memory on the device that upsample_cuda needs for these items.
size_t workspace_bytes(const CudaMaskItem* items, int count);

// Both return null, or CUDA's name of the error. `workspace` is aligned to 256 bytes; it may be
// used again by later work on the same stream.
const char* upsample_cuda(const CudaMaskItem* items, int count, bool half, void* workspace,
                          CudaStream stream);

// rgb (height, width, 3) -> out (3, square, square), float or IEEE half.
const char* letterbox_cuda(const uint8_t* rgb, void* out, bool half, const Letterbox& box,
                           CudaStream stream);

// The device that holds an address: null and `device` set, or what is wrong with it.
const char* find_device(const void* address, int& device);

// Makes a device current for the life of this object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

}  // namespace cris
