// The letterbox on CUDA: one thread a pixel of the square, three channels each.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "ops.h"

namespace cris {
namespace {

constexpr int kSide = 16;  // a block is kSide x kSide pixels: neighbours read the same lines

template <class Value>
__device__ Value convert(float value);
template <>
__device__ float convert<float>(float value) {
  return value;
}
template <>
__device__ __half convert<__half>(float value) {
  return __float2half_rn(value);
}

template <class Value>
__global__ void __launch_bounds__(kSide* kSide)
    letterbox(const uint8_t* rgb, Value* out, const __grid_constant__ Letterbox box) {
  const int x = blockIdx.x * kSide + threadIdx.x, y = blockIdx.y * kSide + threadIdx.y;
  if (x >= box.square || y >= box.square) return;
  float value[kChannels];
  letterbox_pixel(rgb, box, x, y, value);
  const int64_t plane = static_cast<int64_t>(box.square) * box.square;
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel)
    out[channel * plane + static_cast<int64_t>(y) * box.square + x] =
        convert<Value>(value[channel]);
}

}  // namespace

const char* letterbox_cuda(const uint8_t* rgb, void* out, bool half, const Letterbox& box,
                           CudaStream stream) {
  const dim3 threads(kSide, kSide);
  const unsigned side = static_cast<unsigned>(box.square + kSide - 1) / kSide;
  const dim3 blocks(side, side);
  if (half)
    letterbox<<<blocks, threads, 0, stream>>>(rgb, static_cast<__half*>(out), box);
  else
    letterbox<<<blocks, threads, 0, stream>>>(rgb, static_cast<float*>(out), box);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cris
