// Runs the CUDA mask step on the host and compares every bit with the CPU operation's.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/ops.h"
#include "mask.h"

using namespace cris;

namespace {

constexpr int kSource = 26, kSquare = 104;
constexpr int kSizes[][2] = {{70, 150}, {33, 129}, {1, 1},   {7, 5},    {200, 17}, {17, 200},
                             {131, 30}, {64, 128}, {3, 641}, {90, 700}, {50, 4},   {129, 132},
                             {20, 20},  {20, 21},  {20, 22}, {20, 23},  {21, 24},  {22, 25}};
constexpr int kCount = sizeof kSizes / sizeof kSizes[0];  // more than one launch takes

Axis axis(double scale, int length, bool direct) {
  return {scale, (kSquare - length * scale) / 2, kSource, kSquare, direct};
}

int differences(bool direct, bool half) {
  constexpr size_t kMap = size_t{kSource} * kSource;
  std::vector<float> single(kCount * kMap);
  std::vector<uint16_t> halves(kCount * kMap);
  uint32_t state = 7;
  for (size_t i = 0; i < single.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    single[i] = static_cast<float>(state >> 8) / 2097152.0f - 4.0f;
    halves[i] = static_cast<uint16_t>((state >> 16 & 0x8000u) | (state >> 8 & 0x47ffu));
  }
  single[5] = NAN;
  single[9] = INFINITY;
  single[40] = -INFINITY;
  halves[5] = 0x7e00;
  halves[9] = 0xfc00;

  struct Outputs {
    std::vector<uint8_t> mask, packed;
    std::vector<float> probabilities;
  };
  std::vector<Outputs> cpu(kCount), gpu(kCount);
  std::vector<long long> stats(5 * kCount, -1);
  std::vector<MaskItem> cpu_items(kCount);
  std::vector<CudaMaskItem> gpu_items(kCount);
  for (int i = 0; i < kCount; ++i) {
    const int height = kSizes[i][0], width = kSizes[i][1];
    const double scale = std::fmin(double{kSquare} / height, double{kSquare} / width);
    for (Outputs* outputs : {&cpu[i], &gpu[i]}) {
      outputs->mask.assign(size_t(height) * width, 9);
      outputs->packed.assign(size_t(height) * ((width + 7) / 8), 9);
      outputs->probabilities.assign(size_t(height) * width, -9.0f);
    }
    const void* logits = half ? static_cast<const void*>(halves.data() + i * kMap)
                              : static_cast<const void*>(single.data() + i * kMap);
    const Axis y = axis(scale, height, direct), x = axis(scale, width, direct);
    gpu_items[i] = {logits,
                    gpu[i].mask.data(),
                    gpu[i].packed.data(),
                    gpu[i].probabilities.data(),
                    &stats[5 * i],
                    y,
                    x,
                    height,
                    width,
                    0.35f};
    MaskItem& item = cpu_items[i];
    item.logits = logits;
    item.half = half;
    item.y = y;
    item.x = x;
    item.height = height;
    item.width = width;
    item.threshold = 0.35f;
    item.mask = cpu[i].mask.data();
    item.packed = cpu[i].packed.data();
    item.probabilities = cpu[i].probabilities.data();
  }
  std::vector<char> workspace(workspace_bytes(gpu_items.data(), kCount));
  upsample_cuda(gpu_items.data(), kCount, half, workspace.data(), nullptr);
  std::vector<MaskResult> results(kCount);
  upsample(cpu_items.data(), results.data(), kCount, 1);

  int wrong = 0;
  for (int i = 0; i < kCount; ++i) {
    const long long* found = &stats[5 * i];
    bool same = cpu[i].mask == gpu[i].mask && cpu[i].packed == gpu[i].packed &&
                cpu[i].probabilities == gpu[i].probabilities && found[0] == results[i].area;
    for (int k = 0; k < 4; ++k) same &= results[i].area == 0 || found[k + 1] == results[i].box[k];
    if (results[i].area == 0) same &= found[1] >= found[3];
    if (same) continue;
    std::printf("%d x %d, direct %d, half %d differs\n", kSizes[i][0], kSizes[i][1], direct, half);
    ++wrong;
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const bool direct : {false, true})
    for (const bool half : {false, true}) wrong += differences(direct, half);
  return wrong != 0;
}
