#include "arguments.h"

#include <cmath>

namespace cris {

Frame make_frame(int64_t height, int64_t width, double scale_y, double offset_y, double scale_x,
                 double offset_x) {
  const std::string size = std::to_string(height) + " x " + std::to_string(width);
  if (height < 1 || width < 1)
    throw InputError("height x width is " + size + ": both must be at least 1");
  if (height > kMaxSide || width > kMaxSide || height * width > kMaxPixels)
    throw InputError("height x width is " + size + ": at most " + std::to_string(kMaxSide) +
                     " a side and " + std::to_string(kMaxPixels) + " pixels; resize the image");
  const auto check = [](const char* name, double value, bool positive) {
    if (!std::isfinite(value) || (positive && value <= 0.0))
      throw InputError(std::string(name) + " is " + std::to_string(value) + ": it must be finite" +
                       (positive ? " and above 0" : ""));
  };
  check("scale_y", scale_y, true);
  check("offset_y", offset_y, false);
  check("scale_x", scale_x, true);
  check("offset_x", offset_x, false);
  return {static_cast<int>(height), static_cast<int>(width), scale_y, offset_y, scale_x, offset_x};
}

Letterbox inverse(const Frame& frame, int square) {
  return {frame.height,
          frame.width,
          square,
          1.0 / frame.scale_y,
          -frame.offset_y / frame.scale_y,
          1.0 / frame.scale_x,
          -frame.offset_x / frame.scale_x};
}

std::vector<float> check_thresholds(const std::vector<double>& thresholds, size_t count) {
  if (thresholds.size() != count)
    throw InputError("thresholds has " + std::to_string(thresholds.size()) + " values for " +
                     std::to_string(count) + " frames: give one for each");
  std::vector<float> values;
  for (const double threshold : thresholds) {
    if (!(threshold >= 0.0 && threshold <= 1.0))
      throw InputError("thresholds holds " + std::to_string(threshold) +
                       ": a threshold is a probability, 0 to 1");
    values.push_back(static_cast<float>(threshold));
  }
  return values;
}

void check_source(int64_t items, int64_t height, int64_t width, size_t frames, int64_t input_size,
                  bool direct) {
  if (static_cast<uint64_t>(items) != frames)
    throw InputError("frames has " + std::to_string(frames) + " entries for " +
                     std::to_string(items) + " maps of logits: give one for each");
  if (items > 0 && (height < 1 || width < 1 || height > kMaxSource || width > kMaxSource))
    throw InputError("logits are " + std::to_string(height) + " x " + std::to_string(width) +
                     ": each side must be 1 to " + std::to_string(kMaxSource));
  if (input_size < 1 || input_size > kMaxSide)
    throw InputError("input_size is " + std::to_string(input_size) + ": it must be 1 to " +
                     std::to_string(kMaxSide));
  const int64_t side = height > width ? height : width;
  if (items > 0 && !direct && 3 * (side - 1) >= input_size - (side == 1 ? 0 : 1))
    throw InputError("logits are " + std::to_string(height) + " x " + std::to_string(width) +
                     " for input_size " + std::to_string(input_size) +
                     ": the exact mode needs sides below a third of it (the model gives a "
                     "quarter); correct input_size or use the direct mode");
}

}  // namespace cris
