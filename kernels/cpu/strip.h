// The inner loops, compiled once per instruction set (strip.inl) and chosen at run time.
//
// A strip is 64 neighbouring columns of the image over its whole height: one output row of it is
// one 64-bit word and one cache line of bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cris {

constexpr int kStrip = 64;
constexpr int kTapStride = 8;  // floats from one row's vertical weights to the next's

// A run of image rows that read the same five rows of samples.
struct Band {
  int begin, end;  // image rows
  int base;        // first row of samples
  // Over the rows of the band: least and greatest sum of the weights, greatest sum of their
  // magnitudes. They bound what the filter can give from what it reads.
  float least, greatest, magnitude;
};

struct StripSummary {
  int64_t area;
  uint64_t columns;  // which columns have a pixel
  int first, last;   // rows with a pixel; first > last if there is none
};

struct StripLoops {
  const char* name;
  // count logits -> probabilities
  void (*sigmoid)(const float* logits, float* out, int count);
  void (*half_to_float)(const uint16_t* in, float* out, int count);
  // Horizontal filter of rows [begin, end): samples (rows, stride) -> out (rows, kStrip).
  // base and weight (kTaps planes `plane` floats apart) are those of the strip's columns.
  void (*horizontal)(const float* samples, ptrdiff_t stride, int begin, int end, const int* base,
                     const float* weight, ptrdiff_t plane, int taps, float* out);
  // Vertical filter and threshold: bit c of bits[y] is column c of the strip in image row y.
  // weight is (rows, kTapStride). probabilities, if wanted, is (rows, kStrip) of this strip with
  // a row stride in floats, of which `columns` are written.
  void (*vertical)(const float* rows, const Band* bands, int band_count, const float* weight,
                   int taps, float threshold, uint64_t* bits, float* probabilities,
                   ptrdiff_t probability_stride, int columns);
  // bits -> bytes 0 or 1, `columns` of each row
  void (*expand)(const uint64_t* bits, int rows, uint8_t* out, ptrdiff_t stride, int columns);
  StripSummary (*summarise)(const uint64_t* bits, int rows);
};

extern const StripLoops kStripPortable;
#if defined(__x86_64__)
extern const StripLoops kStripAvx2;
extern const StripLoops kStripAvx512;
#endif

}  // namespace cris
