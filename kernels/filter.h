// The arithmetic of the mask step and of the letterbox, shared by the CPU and the CUDA code.
//
// The mask step of CRIS is: sigmoid, bicubic resize to the network's input square (corners
// aligned), affine warp back to the image (bicubic, zero outside the square), strict threshold.
// The last two are linear, separable and axis-aligned, so per axis they compose into one filter
// of at most kTaps samples. Everything that decides a pixel is in this file; every rounding is
// spelled out (no contraction is left to the compiler), so that all the builds with a fused
// multiply-add - AVX2, AVX-512, NEON, CUDA - give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

// always_inline, because this file is compiled several times with different instruction sets: a
// shared out-of-line copy could carry instructions that the machine does not have.
#if defined(__CUDACC__)
#define CRIS_INLINE static __host__ __device__ __forceinline__
#else
#define CRIS_INLINE static inline __attribute__((always_inline))
#endif

namespace cris {

constexpr int kTaps = 5;          // samples per axis in the exact mode
constexpr int kDirectTaps = 4;    // samples per axis in the direct mode
constexpr int kResizeTaps = 4;    // samples of one bicubic step
constexpr int kPad = 3;           // replicated samples on either side of the probabilities
constexpr double kCubic = -0.75;  // both bicubic steps (PyTorch's and OpenCV's coefficient)

// Where the samples of one output axis lie. `scale` and `offset` map an image coordinate to the
// input square: square = scale * image + offset.
struct Axis {
  double scale;
  double offset;
  int source;   // samples along the axis in the logits
  int square;   // side of the input square
  bool direct;  // one bicubic from the logits' grid instead of the two steps
};

struct Taps {
  int base;  // first sample, in padded coordinates (kPad = the first real one)
  float weight[kTaps];
};

CRIS_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;  // no fused instruction: two roundings, the one build whose last bit may differ
#endif
}

CRIS_INLINE float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

CRIS_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// 1 / (1 + exp(-x)), relative error below 3e-7. +inf gives 1, -inf and everything below -87 give 0,
// NaN gives 0: a pixel the network could not decide is not part of the object.
CRIS_INLINE float sigmoid(float x) {
  const float magnitude = as_float(as_bits(x) & 0x7fffffffu);
  const float a = magnitude < 87.0f ? magnitude : 87.0f;  // NaN takes the 87
  // exp(-a) = 2^n * exp(r): n is rounded by adding and taking away 1.5 * 2^23; r in two steps
  // (Cody and Waite), the first of them exact.
  const float n = fused(a, -1.44269504f, 12582912.0f) - 12582912.0f;
  const float r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, -a));
  float e = 0.00139265507f;  // minimax polynomial of (exp(r) - 1 - r) / r^2 on |r| < 0.349
  e = fused(e, r, 0.00836347229f);
  e = fused(e, r, 0.0416665524f);
  e = fused(e, r, 0.166665748f);
  e = fused(e, r, 0.5f);
  e = fused(e, r, 1.0f);
  e = fused(e, r, 1.0f);
  e *= as_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  e = magnitude < 87.0f ? e : 0.0f;
  const float p = (x < 0.0f ? e : 1.0f) / (1.0f + e);
  return x == x ? p : 0.0f;
}

// IEEE half to float, exact, subnormals and non-finite values included.
CRIS_INLINE float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  // 2^112 moves the exponent from half's bias to float's; it turns subnormals normal.
  uint32_t bits = as_bits(as_float(magnitude) * 5.192296858534828e33f);
  bits |= (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return as_float(bits | static_cast<uint32_t>(half & 0x8000u) << 16);
}

// The four weights of cubic convolution for samples at -1, 0, 1, 2 around a point at t in [0, 1).
CRIS_INLINE void cubic_weights(double t, double weight[kResizeTaps]) {
  const double u = 1.0 - t, near = kCubic + 2.0, mid = kCubic + 3.0;
  weight[0] = kCubic * t * u * u;
  weight[1] = (near * t - mid) * t * t + 1.0;
  weight[2] = (near * u - mid) * u * u + 1.0;
  weight[3] = kCubic * u * t * t;
}

// Sample `i` of the input square from the logits' grid, corners aligned: the first of its four
// samples (in padded coordinates) is returned. The edge samples repeat beyond the edge.
CRIS_INLINE int resize_taps(int i, int source, int square, double weight[kResizeTaps]) {
  const double ratio = square > 1 ? static_cast<double>(source - 1) / (square - 1) : 0.0;
  const double at = i * ratio;
  const int cell = static_cast<int>(at);  // at >= 0
  cubic_weights(at - cell, weight);
  return cell - 1 + kPad;
}

// `Resize` gives sample i of the input square as resize_taps does; a table or the function itself.
template <class Resize>
CRIS_INLINE Taps axis_taps(const Axis& axis, int position, const Resize& resize) {
  // The least base there is (the greatest below), so that bases ascend with the position.
  Taps taps = {kPad - 1, {0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
  const double at = axis.scale * position + axis.offset;
  double cubic[kResizeTaps];
  if (axis.direct) {
    const double last = axis.source - 1;
    const double ratio = axis.square > 1 ? last / (axis.square - 1) : 0.0;
    double u = at * ratio;
    u = u > 0.0 ? u : 0.0;  // edge samples repeat
    u = u < last ? u : last;
    const int cell = static_cast<int>(u);
    cubic_weights(u - cell, cubic);
    taps.base = cell - 1 + kPad;
    for (int k = 0; k < kResizeTaps; ++k) taps.weight[k] = static_cast<float>(cubic[k]);
    return taps;
  }
  // Outside the square every sample of the warp is the zero border. The comparison comes before
  // the conversion to int, which could overflow.
  if (!(at > -2.0)) return taps;
  if (!(at < axis.square + 1.0)) {
    taps.base = axis.source - 2 + kPad;
    return taps;
  }
  const int cell = static_cast<int>(at + 2.0) - 2;  // floor: at + 2 > 0
  cubic_weights(at - cell, cubic);
  double sum[kTaps] = {0.0, 0.0, 0.0, 0.0, 0.0};
  int first = -1;
  for (int k = 0; k < kResizeTaps; ++k) {
    const int i = cell - 1 + k;
    if (i < 0 || i >= axis.square) continue;  // the warp's border is zero
    double weight[kResizeTaps];
    const int base = resize(i, weight);
    if (first < 0) first = base;
    // Four neighbours of the square span less than one sample of the logits (checked by the
    // callers), so they start at one sample or the next.
    if (base == first) {
      for (int j = 0; j < kResizeTaps; ++j) sum[j] = sum[j] + cubic[k] * weight[j];
    } else {
      for (int j = 0; j < kResizeTaps; ++j) sum[j + 1] = sum[j + 1] + cubic[k] * weight[j];
    }
  }
  if (first >= 0) taps.base = first;
  for (int k = 0; k < kTaps; ++k) taps.weight[k] = static_cast<float>(sum[k]);
  return taps;
}

// --- letterbox

// CLIP's channel statistics, RGB, in units of the 0..1 range.
constexpr int kChannels = 3;
CRIS_INLINE float channel_mean(int channel) {
  return channel == 0 ? 0.48145466f : channel == 1 ? 0.4578275f : 0.40821073f;
}
CRIS_INLINE float channel_deviation(int channel) {
  return channel == 0 ? 0.26862954f : channel == 1 ? 0.26130258f : 0.27577711f;
}

// The colour of the padding: 255 times the mean, as a byte.
CRIS_INLINE float channel_border(int channel) {
  return channel == 0 ? 123.0f : channel == 1 ? 117.0f : 104.0f;
}

// From the input square back to the image, per axis: image = scale * square + offset.
struct Letterbox {
  int height, width, square;
  double scale_y, offset_y, scale_x, offset_x;
};

CRIS_INLINE float round_to_byte(float value) {
  const float clamped = value > 0.0f ? (value < 255.0f ? value : 255.0f) : 0.0f;
  return (clamped + 8388608.0f) - 8388608.0f;  // to the nearest, ties to even
}

// One pixel (x, y) of the square, normalised: bicubic from rgb (height, width, 3), rounded to a
// byte as the 8-bit warp of training does.
CRIS_INLINE void letterbox_pixel(const uint8_t* rgb, const Letterbox& box, int x, int y,
                                 float out[kChannels]) {
  const double at_x = box.scale_x * x + box.offset_x, at_y = box.scale_y * y + box.offset_y;
  float sum[kChannels];
  // Further out than the filter reaches there is only border.
  const bool inside =
      at_x > -3.0 && at_x < box.width + 2.0 && at_y > -3.0 && at_y < box.height + 2.0;
  if (inside) {
    const int cell_x = static_cast<int>(at_x + 3.0) - 3, cell_y = static_cast<int>(at_y + 3.0) - 3;
    double wide_x[kResizeTaps], wide_y[kResizeTaps];
    cubic_weights(at_x - cell_x, wide_x);
    cubic_weights(at_y - cell_y, wide_y);
    for (int channel = 0; channel < kChannels; ++channel) sum[channel] = 0.0f;
    for (int j = 0; j < kResizeTaps; ++j) {
      const int row = cell_y - 1 + j;
      float line[kChannels] = {0.0f, 0.0f, 0.0f};
      for (int i = 0; i < kResizeTaps; ++i) {
        const int column = cell_x - 1 + i;
        const bool there = row >= 0 && row < box.height && column >= 0 && column < box.width;
        const uint8_t* pixel =
            rgb + (there ? (static_cast<int64_t>(row) * box.width + column) * kChannels : 0);
        for (int channel = 0; channel < kChannels; ++channel)
          line[channel] = fused(
              static_cast<float>(wide_x[i]),
              there ? static_cast<float>(pixel[channel]) : channel_border(channel), line[channel]);
      }
      for (int channel = 0; channel < kChannels; ++channel)
        sum[channel] = fused(static_cast<float>(wide_y[j]), line[channel], sum[channel]);
    }
  }
  for (int channel = 0; channel < kChannels; ++channel) {
    const float byte = inside ? round_to_byte(sum[channel]) : channel_border(channel);
    out[channel] = (byte / 255.0f - channel_mean(channel)) / channel_deviation(channel);
  }
}

}  // namespace cris
