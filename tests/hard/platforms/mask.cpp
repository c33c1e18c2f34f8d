// Runs the CPU mask step on made-up logits and writes what it gives, for machines to be compared.
//   mask INSTRUCTION_SET VALUES DECISIONS
// VALUES gets the probabilities of all cases as float32, DECISIONS everything that follows from
// them. Exit code 1 if the outputs of one call contradict each other, 3 if this machine does not
// have the instruction set.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mask.h"

using namespace cris;

namespace {

constexpr int kSizes[][2] = {{70, 150}, {33, 129}, {1, 1}, {7, 5}, {200, 17}, {480, 640}, {64, 128}};
constexpr int kSource = 26, kSquare = 104;
constexpr size_t kMap = size_t{kSource} * kSource;

FILE* create(const char* path) {
  FILE* const file = std::fopen(path, "wb");
  if (!file) std::exit(2);
  return file;
}

template <class T>
void put(const std::vector<T>& values, FILE* file) {
  if (std::fwrite(values.data(), sizeof(T), values.size(), file) != values.size()) std::exit(2);
}

// Smooth maps and noise, by integers alone, so that every machine has the same.
float logit(uint32_t& state, size_t i, bool smooth) {
  state = state * 1664525u + 1013904223u;
  const float noise = static_cast<float>(state >> 8) / 2097152.0f - 4.0f;
  if (!smooth) return noise;
  const int x = static_cast<int>(i % kSource) - 13, y = static_cast<int>(i / kSource) - 9;
  return static_cast<float>(40 - x * x - y * y) / 8.0f + noise / 64.0f;
}

bool run(bool smooth, bool half, bool direct, FILE* values, FILE* decisions) {
  bool whole = true;
  uint32_t state = 7;
  for (const auto& size : kSizes) {
    const int height = size[0], width = size[1];
    std::vector<float> single(kMap);
    std::vector<uint16_t> halves(kMap);
    for (size_t i = 0; i < kMap; ++i) {
      single[i] = logit(state, i, smooth);
      halves[i] = static_cast<uint16_t>((state >> 16 & 0x8000u) | (state >> 8 & 0x47ffu));
    }
    single[5] = NAN;
    single[9] = INFINITY;
    single[40] = -INFINITY;
    halves[5] = 0x7e00;
    halves[9] = 0xfc00;
    const double scale = std::fmin(double{kSquare} / height, double{kSquare} / width);
    const size_t bytes = static_cast<size_t>((width + 7) / 8);
    std::vector<uint8_t> mask(static_cast<size_t>(height) * static_cast<size_t>(width), 9);
    std::vector<uint8_t> packed(static_cast<size_t>(height) * bytes, 9), skipped = mask;
    std::vector<float> probabilities(mask.size(), -9.0f);
    MaskItem item;
    item.logits = half ? static_cast<const void*>(halves.data()) : single.data();
    item.half = half;
    item.y = {scale, (kSquare - height * scale) / 2, kSource, kSquare, direct};
    item.x = {scale, (kSquare - width * scale) / 2, kSource, kSquare, direct};
    item.height = height;
    item.width = width;
    item.threshold = 0.35f;
    item.mask = mask.data();
    item.packed = packed.data();
    item.probabilities = probabilities.data();
    item.rle = true;
    MaskResult result, alone;
    upsample(&item, &result, 1, 2);
    // Where no value is asked for, blocks may be decided by their bounds.
    item.probabilities = nullptr;
    item.packed = nullptr;
    item.mask = skipped.data();
    upsample(&item, &alone, 1, 1);

    int64_t area = 0;
    for (size_t i = 0; i < mask.size(); ++i) {
      const size_t row = i / static_cast<size_t>(width), column = i % static_cast<size_t>(width);
      const int bit = packed[row * bytes + column / 8] >> (7 - column % 8) & 1;
      const int expected = probabilities[i] > item.threshold;
      whole &= mask[i] == expected && bit == expected && skipped[i] == expected;
      area += expected;
    }
    whole &= area == result.area && result.counts == alone.counts;
    whole &= result.counts == encode_mask(mask.data(), height, width);
    put(probabilities, values);
    put(mask, decisions);
    put(packed, decisions);
    std::fprintf(decisions, "%lld %d %d %d %d %s\n", static_cast<long long>(result.area),
                 result.box[0], result.box[1], result.box[2], result.box[3],
                 result.counts.c_str());
  }
  return whole;
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) return 2;
  if (!select_simd(words[1])) return 3;
  FILE* const values = create(words[2]);
  FILE* const decisions = create(words[3]);
  bool whole = true;
  for (const bool smooth : {false, true})
    for (const bool half : {false, true})
      for (const bool direct : {false, true}) whole &= run(smooth, half, direct, values, decisions);
  return std::fclose(values) || std::fclose(decisions) ? 2 : !whole;
}
