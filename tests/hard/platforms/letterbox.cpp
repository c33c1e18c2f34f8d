// Writes a letterboxed, normalised picture, made up by integers, for machines to be compared.
#include <cstdio>
#include <vector>

#include "filter.h"

using namespace cris;

int main(int count, char** words) {
  if (count != 2) return 2;
  const int height = 61, width = 150, square = 224;
  const double scale = static_cast<double>(square) / width;
  std::vector<uint8_t> rgb(static_cast<size_t>(height * width * kChannels));
  uint32_t state = 3;
  for (uint8_t& level : rgb) {
    state = state * 1664525u + 1013904223u;
    level = static_cast<uint8_t>(state >> 24);
  }
  const double offset = (square - height * scale) / 2;
  const Letterbox box = {height, width, square, 1 / scale, -offset / scale, 1 / scale, 0.0};
  FILE* const file = std::fopen(words[1], "wb");
  if (!file) return 2;
  for (int y = 0; y < square; ++y) {
    for (int x = 0; x < square; ++x) {
      float value[kChannels];
      letterbox_pixel(rgb.data(), box, x, y, value);
      if (std::fwrite(value, sizeof value, 1, file) != 1) return 2;
    }
  }
  return std::fclose(file) ? 2 : 0;
}
