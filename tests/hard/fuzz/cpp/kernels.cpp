// The mask step and the letterbox under libFuzzer: any logits, any geometry that the checks of the
// binding let through, every instruction set of this machine. Buffers are as long as they must be,
// so that a sanitizer sees one sample too many. What the outputs say of each other has to agree.
//
// Without libFuzzer (-DCASES=n) it runs n cases by chance, the same ones each time.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../../../kernels/bindings/arguments.h"

namespace {

#define REQUIRE(condition)                                            \
  if (!(condition)) {                                                 \
    std::fprintf(stderr, "line %d: not %s\n", __LINE__, #condition); \
    std::abort();                                                     \
  }

class Draw {
 public:
  Draw(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  uint64_t bits(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes && left_ > 0; ++i, --left_) value |= uint64_t{*data_++} << (8 * i);
    return value;
  }

  int whole(int low, int high) {
    return low + static_cast<int>(bits(4) % static_cast<uint64_t>(int64_t{high} - low + 1));
  }

  double real() {
    static const double special[] = {0.0, 1.0, -1.0, 5e-324, 1e308, -1e308, INFINITY, NAN, 1e-300};
    const int kind = whole(0, 2);
    if (kind == 0) return special[whole(0, 8)];
    if (kind == 1) return whole(-100000, 100000) / 256.0;
    const uint64_t value = bits(8);
    double result;
    memcpy(&result, &value, sizeof result);
    return result;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Outputs {
  std::vector<uint8_t> mask, packed;
  std::vector<float> probabilities;
  cris::MaskResult result;
};

Outputs run(cris::MaskItem item, int threads) {
  Outputs outputs;
  const size_t pixels = static_cast<size_t>(item.height) * static_cast<size_t>(item.width);
  outputs.mask.resize(pixels);
  outputs.packed.resize(static_cast<size_t>(item.height) *
                        static_cast<size_t>((item.width + 7) / 8));
  outputs.probabilities.resize(pixels);
  item.mask = outputs.mask.data();
  item.packed = outputs.packed.data();
  item.probabilities = outputs.probabilities.data();
  item.rle = true;
  cris::upsample(&item, &outputs.result, 1, threads);
  return outputs;
}

void agree(const Outputs& out, const cris::MaskItem& item) {
  int64_t area = 0;
  int x0 = item.width, y0 = item.height, x1 = 0, y1 = 0;
  for (int y = 0; y < item.height; ++y) {
    for (int x = 0; x < item.width; ++x) {
      const size_t at = static_cast<size_t>(y) * static_cast<size_t>(item.width) +
                        static_cast<size_t>(x);
      const bool in = out.probabilities[at] > item.threshold;
      REQUIRE(std::isfinite(out.probabilities[at]));
      REQUIRE(out.mask[at] == (in ? 1 : 0));
      const size_t byte = static_cast<size_t>(y) * static_cast<size_t>((item.width + 7) / 8) +
                          static_cast<size_t>(x / 8);
      REQUIRE((out.packed[byte] >> (7 - x % 8) & 1) == (in ? 1 : 0));
      if (!in) continue;
      ++area;
      x0 = std::min(x0, x), y0 = std::min(y0, y), x1 = std::max(x1, x + 1), y1 = std::max(y1, y + 1);
    }
  }
  const int* box = out.result.box;
  REQUIRE(out.result.area == area);
  if (area) REQUIRE(box[0] == x0 && box[1] == y0 && box[2] == x1 && box[3] == y1);
  REQUIRE(out.result.counts == cris::encode_mask(out.mask.data(), item.height, item.width));
}

cris::Frame frame(Draw& draw, int height, int width, int square) {
  if (draw.whole(0, 1)) {  // a letterbox, as usual
    const double scale = static_cast<double>(square) / std::max(height, width);
    return cris::make_frame(height, width, scale, (square - height * scale) / 2, scale,
                            (square - width * scale) / 2);
  }
  const double sy = draw.real(), oy = draw.real(), sx = draw.real(), ox = draw.real();
  return cris::make_frame(height, width, sy, oy, sx, ox);
}

void mask_step(Draw& draw) {
  const int square = draw.whole(1, 130), height = draw.whole(1, 40), width = draw.whole(1, 140);
  const int rows = draw.whole(1, 40), columns = draw.whole(1, 40);
  const cris::Frame box = frame(draw, height, width, square);
  const bool direct = draw.whole(0, 1);
  cris::check_source(1, rows, columns, 1, square, direct);
  const float threshold = cris::check_thresholds({draw.whole(0, 3) ? 0.35 : draw.real()}, 1)[0];
  const bool half = draw.whole(0, 1);
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  std::vector<float> single(half ? 0 : count);
  std::vector<uint16_t> small(half ? count : 0);
  const bool any = draw.whole(0, 1);
  for (size_t i = 0; i < count; ++i) {
    if (half) {
      small[i] = static_cast<uint16_t>(draw.bits(2));
    } else if (any) {
      single[i] = cris::as_float(static_cast<uint32_t>(draw.bits(4)));
    } else {
      single[i] = static_cast<float>(static_cast<int8_t>(draw.bits(1))) / 8;
    }
  }
  cris::MaskItem item;
  item.logits = half ? static_cast<const void*>(small.data()) : single.data();
  item.half = half;
  item.y = {box.scale_y, box.offset_y, rows, square, direct};
  item.x = {box.scale_x, box.offset_x, columns, square, direct};
  item.height = height;
  item.width = width;
  item.threshold = threshold;
  const int threads = draw.whole(0, 3);
  std::vector<Outputs> fused;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (!cris::select_simd(name)) continue;
    Outputs out = run(item, threads);
    agree(out, item);
    if (std::string(name) != "portable") fused.push_back(std::move(out));
  }
  for (const Outputs& out : fused)  // instruction sets with a fused multiply-add: the same bits
    REQUIRE(memcmp(out.probabilities.data(), fused[0].probabilities.data(),
                   out.probabilities.size() * sizeof(float)) == 0);
}

void letterbox(Draw& draw) {
  const int square = draw.whole(1, 24), height = draw.whole(1, 12), width = draw.whole(1, 12);
  const cris::Letterbox box = cris::inverse(frame(draw, height, width, square), square);
  std::vector<uint8_t> rgb(static_cast<size_t>(height * width * cris::kChannels));
  for (uint8_t& value : rgb) value = static_cast<uint8_t>(draw.bits(1));
  for (int y = 0; y < square; ++y) {
    for (int x = 0; x < square; ++x) {
      float out[cris::kChannels];
      cris::letterbox_pixel(rgb.data(), box, x, y, out);
      for (const float value : out) REQUIRE(std::fabs(value) < 3.0f);
    }
  }
}

void numbers(Draw& draw) {
  const float x = cris::as_float(static_cast<uint32_t>(draw.bits(4)));
  const double p = cris::sigmoid(x), right = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
  if (x != x) {
    REQUIRE(p == 0.0);
  } else if (x > -87.0f) {
    REQUIRE(std::fabs(p - right) <= 3e-7 * right);
  } else {
    REQUIRE(p >= 0.0 && p <= 1e-37);
  }
  const auto half = static_cast<uint16_t>(draw.bits(2));
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half >> 15 ? -1.0 : 1.0;
  const float value = cris::half_to_float(half);
  if (exponent == 31) {
    REQUIRE(fraction ? value != value : value == sign * INFINITY);
  } else {
    const double whole = exponent ? std::ldexp(1024 + fraction, exponent - 25)
                                  : std::ldexp(fraction, -24);
    REQUIRE(value == sign * whole && std::signbit(value) == (sign < 0));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Draw draw(data, size);
  try {
    switch (draw.whole(0, 5)) {
      case 0:
        letterbox(draw);
        break;
      case 1:
        numbers(draw);
        break;
      default:
        mask_step(draw);
    }
  } catch (const cris::InputError&) {  // refused, as the binding would
  }
  return 0;
}

#if defined(CASES)
int main() {
  std::mt19937_64 chance(0);
  std::vector<uint8_t> data(2048);
  for (int i = 0; i < CASES; ++i) {
    for (size_t at = 0; at < data.size(); at += 8) {
      const uint64_t bits = chance();
      memcpy(data.data() + at, &bits, 8);
    }
    LLVMFuzzerTestOneInput(data.data(), chance() % data.size());
  }
  std::printf("%d cases\n", CASES);
}
#endif
