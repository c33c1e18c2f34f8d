// The mask step on CUDA: one small launch that turns logits into probabilities and geometry into
// filters, one that makes the pixels. The arithmetic is filter.h's, in the CPU code's order:
// columns first, then rows, then the comparison.
#include <cuda_runtime.h>

#include "ops.h"

namespace cris {
namespace {

constexpr int kBatch = 16;     // items in one launch; their descriptions travel as arguments
constexpr int kThreads = 128;  // a block of four warps
constexpr int kWarp = 32;
constexpr int kColumns = 4;  // neighbouring columns of one thread: one 32-bit store
constexpr int kRows = 32;    // rows of one warp
constexpr int kTileColumns = kWarp * kColumns;
constexpr int kTileRows = kThreads / kWarp * kRows;
constexpr size_t kAlign = 256;

// A filter as the second kernel reads it: two 16-byte loads.
struct alignas(16) DeviceTaps {
  float weight[kTaps];
  int base;
  int unused[2];
};

struct Prepared {
  CudaMaskItem item;
  float* samples;  // (source_height + 2 * kPad, source_width + 2 * kPad)
  DeviceTaps* columns;
  DeviceTaps* rows;
};

struct Batch {
  Prepared of[kBatch];
};

__host__ __device__ inline size_t padded(int source) {
  return static_cast<size_t>(source) + 2 * kPad;
}

inline size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

inline size_t sample_bytes(const CudaMaskItem& item) {
  return aligned(padded(item.y.source) * padded(item.x.source) * sizeof(float));
}

struct Resize {
  int source, square;
  __device__ int operator()(int i, double* weight) const {
    return resize_taps(i, source, square, weight);
  }
};

__device__ inline void write_taps(const Axis& axis, int position, DeviceTaps* out) {
  const Taps taps = axis_taps(axis, position, Resize{axis.source, axis.square});
  DeviceTaps value = {};
  for (int k = 0; k < kTaps; ++k) value.weight[k] = taps.weight[k];
  value.base = taps.base;
  out[position] = value;
}

template <bool Half>
__global__ void __launch_bounds__(kThreads) prepare(const __grid_constant__ Batch batch) {
  const Prepared& prepared = batch.of[blockIdx.y];
  const CudaMaskItem& item = prepared.item;
  const int stride = static_cast<int>(padded(item.x.source));
  const int samples = stride * static_cast<int>(padded(item.y.source));
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index == 0 && item.stats) {
    item.stats[0] = 0;
    item.stats[1] = item.width;
    item.stats[2] = item.height;
    item.stats[3] = 0;
    item.stats[4] = 0;
  }
  if (index < samples) {
    const int y = min(max(index / stride - kPad, 0), item.y.source - 1);
    const int x = min(max(index % stride - kPad, 0), item.x.source - 1);
    const int64_t from = static_cast<int64_t>(y) * item.x.source + x;
    const float logit = Half ? half_to_float(static_cast<const uint16_t*>(item.logits)[from])
                             : static_cast<const float*>(item.logits)[from];
    prepared.samples[index] = sigmoid(logit);
  } else if (index < samples + item.width) {
    write_taps(item.x, index - samples, prepared.columns);
  } else if (index < samples + item.width + item.height) {
    write_taps(item.y, index - samples - item.width, prepared.rows);
  }
}

struct Summary {
  int area, x0, y0, x1, y1;
};

// Joins the threads' summaries in shared memory, then adds one to the item's: five atomics a block.
__device__ inline void add_summary(const Summary& mine, long long* stats, Summary* block) {
  const unsigned all = 0xffffffffu;
  Summary sum = mine;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    sum.area += __shfl_down_sync(all, sum.area, step);
    sum.x0 = min(sum.x0, __shfl_down_sync(all, sum.x0, step));
    sum.y0 = min(sum.y0, __shfl_down_sync(all, sum.y0, step));
    sum.x1 = max(sum.x1, __shfl_down_sync(all, sum.x1, step));
    sum.y1 = max(sum.y1, __shfl_down_sync(all, sum.y1, step));
  }
  if (threadIdx.x % kWarp == 0) block[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / kWarp; ++warp) {
    sum.area += block[warp].area;
    sum.x0 = min(sum.x0, block[warp].x0);
    sum.y0 = min(sum.y0, block[warp].y0);
    sum.x1 = max(sum.x1, block[warp].x1);
    sum.y1 = max(sum.y1, block[warp].y1);
  }
  if (sum.area == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(stats),
            static_cast<unsigned long long>(sum.area));
  atomicMin(stats + 1, static_cast<long long>(sum.x0));
  atomicMin(stats + 2, static_cast<long long>(sum.y0));
  atomicMax(stats + 3, static_cast<long long>(sum.x1));
  atomicMax(stats + 4, static_cast<long long>(sum.y1));
}

template <int Taps>
__global__ void __launch_bounds__(kThreads) pixels(const __grid_constant__ Batch batch) {
  __shared__ Summary block[kThreads / kWarp];
  const Prepared& prepared = batch.of[blockIdx.z];
  const CudaMaskItem& item = prepared.item;
  const int width = item.width, height = item.height;
  const int lane = threadIdx.x % kWarp;
  // Images of one batch may differ in size: the grid is that of the largest.
  const int first_column = blockIdx.x * kTileColumns;
  const int first_row = blockIdx.y * kTileRows + threadIdx.x / kWarp * kRows;
  if (first_column >= width || blockIdx.y * kTileRows >= height) return;
  const int x = first_column + lane * kColumns;
  const int end = min(first_row + kRows, height);
  Summary summary = {0, width, height, 0, 0};

  DeviceTaps taps[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    taps[c] = prepared.columns[min(x + c, width - 1)];
    // Columns beyond the edge give 0, which is above no threshold.
    for (int k = 0; k < Taps; ++k) taps[c].weight[k] = x + c < width ? taps[c].weight[k] : 0.0f;
  }
  const int stride = static_cast<int>(padded(item.x.source));
  const bool whole = x + kColumns <= width && width % kColumns == 0;
  const bool mask_words = whole && reinterpret_cast<uintptr_t>(item.mask) % 4 == 0;
  const bool float_words = whole && reinterpret_cast<uintptr_t>(item.probabilities) % 16 == 0;

  float row[Taps][kColumns] = {};  // the filtered samples of rows base .. base + Taps - 1
  int base = -kTaps;
  unsigned seen = 0;
  for (int y = first_row; y < end; ++y) {
    const DeviceTaps down = prepared.rows[y];
    // Bases ascend; whatever lies between two of them is never read.
    for (base = max(base, down.base - Taps); base < down.base; ++base) {
      const float* from = prepared.samples + static_cast<int64_t>(base + Taps) * stride;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int k = 0; k + 1 < Taps; ++k) row[k][c] = row[k + 1][c];
        float sum = taps[c].weight[0] * from[taps[c].base];
#pragma unroll
        for (int k = 1; k < Taps; ++k) sum = fused(taps[c].weight[k], from[taps[c].base + k], sum);
        row[Taps - 1][c] = sum;
      }
    }
    float value[kColumns];
    unsigned bits = 0;  // bit 3 is the first column
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      value[c] = down.weight[0] * row[0][c];
#pragma unroll
      for (int k = 1; k < Taps; ++k) value[c] = fused(down.weight[k], row[k][c], value[c]);
      bits |= (value[c] > item.threshold ? 8u : 0u) >> c;
    }
    const int64_t at = static_cast<int64_t>(y) * width + x;
    if (item.mask) {
      if (mask_words) {
        // Spreads the four bits over four bytes, the first column in the lowest.
        const uint32_t word =
            (bits >> 3 & 1) | (bits & 4) << 6 | (bits & 2) << 15 | (bits & 1) << 24;
        *reinterpret_cast<uint32_t*>(item.mask + at) = word;
      } else {
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (x + c < width) item.mask[at + c] = static_cast<uint8_t>(bits >> (3 - c) & 1);
      }
    }
    if (item.packed) {
      const unsigned next = __shfl_down_sync(0xffffffffu, bits, 1);
      if (lane % 2 == 0 && x < width)
        item.packed[static_cast<int64_t>(y) * ((width + 7) / 8) + x / 8] =
            static_cast<uint8_t>(bits << 4 | next);
    }
    if (item.probabilities) {
      if (float_words) {
        *reinterpret_cast<float4*>(item.probabilities + at) =
            make_float4(value[0], value[1], value[2], value[3]);
      } else {
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (x + c < width) item.probabilities[at + c] = value[c];
      }
    }
    summary.area += __popc(bits);
    seen |= bits;
    if (bits) {
      summary.y0 = min(summary.y0, y);
      summary.y1 = y + 1;
    }
  }
  if (!item.stats) return;
  if (seen) {
    summary.x0 = x + __clz(seen) - 28;
    summary.x1 = x + 5 - __ffs(seen);
  }
  add_summary(summary, item.stats, block);
}

}  // namespace

size_t workspace_bytes(const CudaMaskItem* items, int count) {
  size_t bytes = 0;
  for (int i = 0; i < count; ++i)
    bytes += sample_bytes(items[i]) +
             aligned((static_cast<size_t>(items[i].width) + static_cast<size_t>(items[i].height)) *
                     sizeof(DeviceTaps));
  return bytes;
}

const char* upsample_cuda(const CudaMaskItem* items, int count, bool half, void* workspace,
                          CudaStream stream) {
  char* free_bytes = static_cast<char*>(workspace);
  for (int first = 0; first < count; first += kBatch) {
    const int size = count - first < kBatch ? count - first : kBatch;
    Batch batch = {};
    unsigned work = 0, columns = 0, rows = 0;
    for (int i = 0; i < size; ++i) {
      const CudaMaskItem& item = items[first + i];
      Prepared& prepared = batch.of[i];
      prepared.item = item;
      prepared.samples = reinterpret_cast<float*>(free_bytes);
      free_bytes += sample_bytes(item);
      prepared.columns = reinterpret_cast<DeviceTaps*>(free_bytes);
      prepared.rows = prepared.columns + item.width;
      free_bytes += aligned((static_cast<size_t>(item.width) + static_cast<size_t>(item.height)) *
                            sizeof(DeviceTaps));
      const auto larger = [](unsigned a, size_t b) { return a > b ? a : static_cast<unsigned>(b); };
      work = larger(work, padded(item.y.source) * padded(item.x.source) +
                              static_cast<size_t>(item.width) + static_cast<size_t>(item.height));
      columns = larger(columns, static_cast<size_t>(item.width + kTileColumns - 1) / kTileColumns);
      rows = larger(rows, static_cast<size_t>(item.height + kTileRows - 1) / kTileRows);
    }
    const dim3 blocks((work + kThreads - 1) / kThreads, static_cast<unsigned>(size));
    if (half)
      prepare<true><<<blocks, kThreads, 0, stream>>>(batch);
    else
      prepare<false><<<blocks, kThreads, 0, stream>>>(batch);
    const dim3 tiles(columns, rows, static_cast<unsigned>(size));
    if (items[0].x.direct)
      pixels<kDirectTaps><<<tiles, kThreads, 0, stream>>>(batch);
    else
      pixels<kTaps><<<tiles, kThreads, 0, stream>>>(batch);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

const char* find_device(const void* address, int& device) {
  cudaPointerAttributes attributes = {};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, address);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not sticky: the next call must not report it
    return cudaGetErrorString(error);
  }
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    return "the address is not in device memory";
  device = attributes.device;
  return nullptr;
}

DeviceGuard::DeviceGuard(int device) {
  if (cudaGetDevice(&before_) != cudaSuccess || before_ == device ||
      cudaSetDevice(device) != cudaSuccess)
    before_ = -1;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace cris
