// The inner loops of strip.h. Each strip_*.cpp sets CRIS_SET, a namespace and table name, and
// compiles this file with its own instruction set. Nothing here may call an inline function that
// another file could share (see filter.h), so there is no standard library in it.
#include "../filter.h"
#include "strip.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cris {
namespace CRIS_SET {
namespace {

#if defined(__AVX512BW__)
constexpr int kLanes = 16, kVectors = 4;  // kVectors: vectors side by side in the vertical loop,
#elif defined(__AVX2__)                   // five rows of which stay in registers
constexpr int kLanes = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr int kLanes = 4, kVectors = 2;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

CRIS_INLINE Floats load(const float* from) {
  Floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

CRIS_INLINE void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }

CRIS_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512BW__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  for (int i = 0; i < kLanes; ++i) c[i] = cris::fused(a[i], b[i], c[i]);
  return c;
#endif
}

CRIS_INLINE Floats splat(float value) {
#if defined(__AVX512BW__)
  return _mm512_set1_ps(value);
#elif defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return value - Floats{};
#endif
}

CRIS_INLINE Floats lesser(Floats a, Floats b) { return a < b ? a : b; }
CRIS_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// One bit per lane of a > b.
CRIS_INLINE unsigned above(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#elif defined(__x86_64__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpgt_ps(a, b)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<unsigned>(a[i] > b[i]) << i;
  return bits;
#endif
}

void sigmoid(const float* logits, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = cris::sigmoid(logits[i]);
}

void half_to_float(const uint16_t* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = cris::half_to_float(in[i]);
}

// The samples at base[0..lanes) of one row, for a group whose samples all lie within one vector
// of its first: a permutation of registers instead of a gather.
#if defined(__AVX512BW__)
constexpr bool kPermutes = true;
CRIS_INLINE Floats permute(Floats window, Ints index) {
  // The masked form: GCC 12 warns inside its own header about the other.
  return _mm512_maskz_permutexvar_ps(0xffff, reinterpret_cast<__m512i>(index), window);
}
#elif defined(__AVX2__)
constexpr bool kPermutes = true;
CRIS_INLINE Floats permute(Floats window, Ints index) {
  return _mm256_permutevar8x32_ps(window, reinterpret_cast<__m256i>(index));
}
#else
constexpr bool kPermutes = false;
CRIS_INLINE Floats permute(Floats window, Ints) { return window; }
#endif

template <int Taps>
void horizontal_taps(const float* samples, ptrdiff_t stride, int begin, int end, const int* base,
                     const float* weight, ptrdiff_t plane, float* out) {
  for (int column = 0; column < kStrip; column += kLanes) {
    const int first = base[column];
    Floats w[Taps];
    for (int k = 0; k < Taps; ++k) w[k] = load(weight + k * plane + column);
    if (kPermutes && base[column + kLanes - 1] - first + Taps <= kLanes) {
      Ints index[Taps];
      for (int k = 0; k < Taps; ++k) {
        memcpy(&index[k], base + column, sizeof index[k]);
        index[k] += k - first;
      }
      for (int row = begin; row < end; ++row) {
        const Floats window = load(samples + row * stride + first);
        Floats sum = w[0] * permute(window, index[0]);
        for (int k = 1; k < Taps; ++k) sum = fused(w[k], permute(window, index[k]), sum);
        store(out + static_cast<ptrdiff_t>(row) * kStrip + column, sum);
      }
    } else {
      for (int row = begin; row < end; ++row) {
        const float* from = samples + row * stride;
        Floats sum = splat(0.0f);
        for (int k = 0; k < Taps; ++k) {
          Floats sample = {};
          for (int i = 0; i < kLanes; ++i) sample[i] = from[base[column + i] + k];
          sum = k == 0 ? w[0] * sample : fused(w[k], sample, sum);
        }
        store(out + static_cast<ptrdiff_t>(row) * kStrip + column, sum);
      }
    }
  }
}

void horizontal(const float* samples, ptrdiff_t stride, int begin, int end, const int* base,
                const float* weight, ptrdiff_t plane, int taps, float* out) {
  if (taps == kTaps)
    horizontal_taps<kTaps>(samples, stride, begin, end, base, weight, plane, out);
  else
    horizontal_taps<kDirectTaps>(samples, stride, begin, end, base, weight, plane, out);
}

enum class Verdict { kMixed, kClear, kSet };

// Whether the filter can cross the threshold anywhere in the band. With m the middle and r half
// the spread of the samples, it gives sum(w) * m + at most r * sum(|w|).
template <int Taps>
CRIS_INLINE Verdict judge(const float* rows, const Band& band, float threshold) {
  Floats low = load(rows), high = low;
  for (int i = kLanes; i < Taps * kStrip; i += kLanes) {
    const Floats value = load(rows + i);
    low = lesser(low, value);
    high = larger(high, value);
  }
  // Far more than the rounding of the filter and of this bound: the verdict is exact.
  constexpr float kMargin = 1e-5f;
  const Floats middle = (high + low) * 0.5f;
  const Floats reach = (high - low) * (0.5f * band.magnitude) + kMargin;
  const Floats most = larger(middle * band.least, middle * band.greatest) + reach;
  const Floats fewest = lesser(middle * band.least, middle * band.greatest) - reach;
  if (!above(most, splat(threshold))) return Verdict::kClear;
  if (!above(splat(threshold), fewest)) return Verdict::kSet;
  return Verdict::kMixed;
}

// kVectors * kLanes columns of one band.
template <int Taps, bool Probabilities>
CRIS_INLINE void vertical_group(const float* rows, const Band& band, const float* weight,
                                float threshold, unsigned char* bits, float* probabilities,
                                ptrdiff_t stride, int columns) {
  Floats row[Taps][kVectors];
  for (int k = 0; k < Taps; ++k)
    for (int v = 0; v < kVectors; ++v) row[k][v] = load(rows + k * kStrip + v * kLanes);
  const Floats limit = splat(threshold);
  for (int y = band.begin; y < band.end; ++y) {
    const float* w = weight + static_cast<ptrdiff_t>(y) * kTapStride;
    Floats sum[kVectors];
    const Floats first = splat(w[0]);
    for (int v = 0; v < kVectors; ++v) sum[v] = first * row[0][v];
    for (int k = 1; k < Taps; ++k) {
      const Floats next = splat(w[k]);
      for (int v = 0; v < kVectors; ++v) sum[v] = fused(next, row[k][v], sum[v]);
    }
#if defined(__AVX512BW__)
    const __mmask64 word =
        _mm512_kunpackd(_mm512_kunpackw(_mm512_cmp_ps_mask(sum[3], limit, _CMP_GT_OQ),
                                        _mm512_cmp_ps_mask(sum[2], limit, _CMP_GT_OQ)),
                        _mm512_kunpackw(_mm512_cmp_ps_mask(sum[1], limit, _CMP_GT_OQ),
                                        _mm512_cmp_ps_mask(sum[0], limit, _CMP_GT_OQ)));
    memcpy(bits + static_cast<ptrdiff_t>(y) * 8, &word, 8);
#else
    unsigned word = 0;
    for (int v = 0; v < kVectors; ++v) word |= above(sum[v], limit) << (v * kLanes);
    memcpy(bits + static_cast<ptrdiff_t>(y) * 8, &word, kVectors * kLanes / 8);
#endif
    if (Probabilities) {
      float* to = probabilities + y * stride;
      for (int v = 0; v < kVectors; ++v) {
        const int left = columns - v * kLanes;
        if (left >= kLanes)
          store(to + v * kLanes, sum[v]);
        else
          for (int i = 0; i < left; ++i) to[v * kLanes + i] = sum[v][i];
      }
    }
  }
}

template <int Taps, bool Probabilities>
void vertical_taps(const float* rows, const Band* bands, int band_count, const float* weight,
                   float threshold, uint64_t* bits, float* probabilities, ptrdiff_t stride,
                   int columns) {
  constexpr int kGroup = kVectors * kLanes;
  static_assert(kStrip % kGroup == 0 && kGroup % 8 == 0, "a group fills whole bytes of the word");
  for (int b = 0; b < band_count; ++b) {
    const Band& band = bands[b];
    const float* from = rows + static_cast<ptrdiff_t>(band.base) * kStrip;
    if (!Probabilities) {
      const Verdict verdict = judge<Taps>(from, band, threshold);
      if (verdict != Verdict::kMixed) {
        const uint64_t word = verdict == Verdict::kSet ? ~uint64_t{0} : 0;
        for (int y = band.begin; y < band.end; ++y) bits[y] = word;
        continue;
      }
    }
    for (int column = 0; column < kStrip; column += kGroup)
      vertical_group<Taps, Probabilities>(from + column, band, weight, threshold,
                                          reinterpret_cast<unsigned char*>(bits) + column / 8,
                                          Probabilities ? probabilities + column : nullptr, stride,
                                          columns - column);
  }
}

void vertical(const float* rows, const Band* bands, int band_count, const float* weight, int taps,
              float threshold, uint64_t* bits, float* probabilities, ptrdiff_t stride,
              int columns) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are written as bytes");
  if (taps == kTaps && probabilities)
    vertical_taps<kTaps, true>(rows, bands, band_count, weight, threshold, bits, probabilities,
                               stride, columns);
  else if (taps == kTaps)
    vertical_taps<kTaps, false>(rows, bands, band_count, weight, threshold, bits, nullptr, 0,
                                columns);
  else if (probabilities)
    vertical_taps<kDirectTaps, true>(rows, bands, band_count, weight, threshold, bits,
                                     probabilities, stride, columns);
  else
    vertical_taps<kDirectTaps, false>(rows, bands, band_count, weight, threshold, bits, nullptr, 0,
                                      columns);
}

// 64 bits to 64 bytes of 0 or 1.
CRIS_INLINE void expand_word(uint64_t word, uint8_t* out) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(out, _mm512_maskz_mov_epi8(word, _mm512_set1_epi8(1)));
#elif defined(__AVX2__)
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                          2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i select = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  for (int half = 0; half < 2; ++half) {
    const __m256i bits = _mm256_set1_epi32(static_cast<int>(word >> (32 * half)));
    const __m256i chosen = _mm256_and_si256(_mm256_shuffle_epi8(bits, spread), select);
    const __m256i ones = _mm256_and_si256(_mm256_cmpeq_epi8(chosen, select), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), ones);
  }
#else
  for (int byte = 0; byte < 8; ++byte) {
    // One copy of the byte per output byte, each keeps its own bit, any bit carries into the top.
    const uint64_t copies = (word >> (8 * byte) & 0xff) * 0x0101010101010101ull;
    const uint64_t chosen = copies & 0x8040201008040201ull;
    const uint64_t ones = (chosen + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
    memcpy(out + 8 * byte, &ones, 8);
  }
#endif
}

void expand(const uint64_t* bits, int rows, uint8_t* out, ptrdiff_t stride, int columns) {
  if (columns == kStrip) {
    for (int y = 0; y < rows; ++y) expand_word(bits[y], out + y * stride);
    return;
  }
  for (int y = 0; y < rows; ++y) {
    uint8_t bytes[kStrip];
    expand_word(bits[y], bytes);
    memcpy(out + y * stride, bytes, static_cast<size_t>(columns));
  }
}

StripSummary summarise(const uint64_t* bits, int rows) {
  StripSummary summary = {0, 0, 0, rows - 1};
  for (int y = 0; y < rows; ++y) {
    summary.area += __builtin_popcountll(bits[y]);
    summary.columns |= bits[y];
  }
  if (!summary.columns) {
    summary.first = rows;
    summary.last = -1;
    return summary;
  }
  while (!bits[summary.first]) ++summary.first;
  while (!bits[summary.last]) --summary.last;
  return summary;
}

}  // namespace
}  // namespace CRIS_SET

extern const StripLoops CRIS_TABLE = {
    CRIS_NAME,          CRIS_SET::sigmoid, CRIS_SET::half_to_float, CRIS_SET::horizontal,
    CRIS_SET::vertical, CRIS_SET::expand,  CRIS_SET::summarise,
};

}  // namespace cris
