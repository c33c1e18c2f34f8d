// The mask step on the CPU: what goes in, what comes out.
#pragma once

#include <cstdint>
#include <string>

#include "filter.h"

namespace cris {

constexpr int kMaxSide = 1 << 20;                // image side; bounds the scratch memory of a strip
constexpr int64_t kMaxPixels = (1LL << 31) - 1;  // COCO run lengths are 32-bit
constexpr int kMaxSource = 4096;                 // side of the logits

// One picture. Rows of the outputs lie without gaps; a null pointer means "not wanted".
struct MaskItem {
  const void* logits = nullptr;  // (source_height, source_width), float or IEEE half
  bool half = false;
  Axis y, x;
  int height = 0, width = 0;
  float threshold = 0.0f;
  uint8_t* mask = nullptr;         // (height, width), 0 or 1
  uint8_t* packed = nullptr;       // (height, ceil(width / 8)), first pixel in the highest bit
  float* probabilities = nullptr;  // (height, width)
  bool rle = false;
};

struct MaskResult {
  int64_t area = 0;
  int box[4] = {0, 0, 0, 0};  // x0, y0, x1, y1, the upper ones exclusive; all 0 for an empty mask
  std::string counts;         // COCO's compressed run lengths
};

// Runs all items on at most `threads` threads (0: as many as the process may use), on fewer where
// there is little to do. Every argument has been checked. May be called from many threads at once.
void upsample(const MaskItem* items, MaskResult* results, int count, int threads);

// COCO's compressed run lengths of a mask (height, width) of bytes, zero or not.
std::string encode_mask(const uint8_t* mask, int height, int width);

// The instruction set upsample() uses on this machine.
const char* simd_name();

// Lets the tests run every build of the inner loops: the named set if this machine has it.
bool select_simd(const char* name);

}  // namespace cris
