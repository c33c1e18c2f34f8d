// COCO's compressed run lengths: the mask is read column by column, runs of 0 and 1 alternate
// (the first run is of 0, perhaps empty), from the fourth count on the difference to the count two
// before is stored, in groups of five bits, least significant first, as characters from '0'.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace cris {

// The runs of one strip of columns, encoded as far as they do not depend on the strip before.
struct StripRuns {
  bool first = false, last = false;  // value of the first and of the last pixel
  int64_t changes = 0;               // pixels, past the first, that differ from the one before
  uint32_t head[3] = {0, 0, 0};      // positions of the first three changes,
  uint32_t tail[3] = {0, 0, 0};      // of the last three, the latest first,
  std::string encoded;               // and the counts that end at the changes from the fourth on
};

// Collects the changes of one strip in ascending order.
class StripEncoder {
 public:
  explicit StripEncoder(StripRuns& runs) : runs_(runs) {}

  void change(uint32_t position) {
    if (runs_.changes < 3)
      runs_.head[runs_.changes] = position;
    else
      append((int64_t{position} - runs_.tail[0]) - (int64_t{runs_.tail[1]} - runs_.tail[2]));
    runs_.tail[2] = runs_.tail[1];
    runs_.tail[1] = runs_.tail[0];
    runs_.tail[0] = position;
    ++runs_.changes;
  }

  void finish() { runs_.encoded.assign(buffer_.data(), used_); }

 private:
  void append(int64_t value);

  StripRuns& runs_;
  std::vector<char> buffer_;
  size_t used_ = 0;
};

// Joins the strips of a mask of `pixels` pixels; starts[i] is the position of strip i's first.
std::string join_strips(const std::vector<StripRuns>& strips, const std::vector<uint32_t>& starts,
                        int64_t pixels);

}  // namespace cris
