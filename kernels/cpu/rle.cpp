#include "rle.h"

namespace cris {
namespace {

constexpr size_t kMaxGroups = 8;  // 40 bits: more than any difference of two 32-bit counts

// Writes at most kMaxGroups characters and returns how many.
inline size_t encode(int64_t value, char* out) {
  if (value >= -512 && value < 512) {
    // One or two characters, without a branch between them: contours mix the two at random.
    const uint64_t bits = static_cast<uint64_t>(value);
    const unsigned two = value < -16 || value > 15;
    const uint64_t low = (bits & 0x1f) + 0x30 + (two << 5);
    const uint64_t high = (bits >> 5 & 0x1f) + 0x30;
    const uint16_t both = static_cast<uint16_t>(low | high << 8);
    memcpy(out, &both, sizeof both);
    return 1 + two;
  }
  for (size_t groups = 0;;) {
    const int64_t digit = value & 0x1f;
    value >>= 5;
    // Done when what is left only repeats the sign bit of the digit.
    const bool more = value != (digit & 0x10 ? -1 : 0);
    out[groups++] = static_cast<char>(digit + 0x30 + (more ? 0x20 : 0));
    if (!more) return groups;
  }
}

// The whole mask's sequence of changes, one at a time.
class Joiner {
 public:
  void change(uint32_t position) {
    count(position);
    before_[2] = before_[1];
    before_[1] = before_[0];
    before_[0] = position;
  }

  void append(const StripRuns& runs) {
    const int64_t single = runs.changes < 3 ? runs.changes : 3;
    for (int64_t i = 0; i < single; ++i) change(runs.head[i]);
    if (runs.changes <= 3) return;
    text_ += runs.encoded;
    counts_ += runs.changes - 3;
    memcpy(before_, runs.tail, sizeof before_);
  }

  std::string finish(int64_t pixels) {
    count(pixels);
    return std::move(text_);
  }

 private:
  void count(int64_t position) {
    int64_t value = position - before_[0];
    if (counts_ > 2) value -= int64_t{before_[1]} - before_[2];
    ++counts_;
    char buffer[kMaxGroups];
    text_.append(buffer, encode(value, buffer));
  }

  std::string text_;
  int64_t counts_ = 0;
  uint32_t before_[3] = {0, 0, 0};  // the latest change first
};

}  // namespace

void StripEncoder::append(int64_t value) {
  if (used_ + kMaxGroups > buffer_.size()) buffer_.resize(buffer_.size() * 2 + 4096);
  used_ += encode(value, buffer_.data() + used_);
}

std::string join_strips(const std::vector<StripRuns>& strips, const std::vector<uint32_t>& starts,
                        int64_t pixels) {
  Joiner joiner;
  bool value = false;
  for (size_t i = 0; i < strips.size(); ++i) {
    if (strips[i].first != value) joiner.change(starts[i]);
    joiner.append(strips[i]);
    value = strips[i].last;
  }
  return joiner.finish(pixels);
}

}  // namespace cris
