// The mask step: plans (filters of an axis), strips of columns, threads.
#include "../mask.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "rle.h"
#include "strip.h"
#include "threads.h"

namespace cris {
namespace {

// Less work than this, about 0.2 ms, is not worth waking a thread for: the processors are often
// still held by the network runtime's own threads, which spin a while after their last task.
constexpr int64_t kPixelsPerThread = 1 << 20;
constexpr int kSlack = 16;  // floats a vector load may read past the last sample it uses

std::atomic<const StripLoops*> chosen{nullptr};

const StripLoops* find_loops(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (name.empty() || name == kStripAvx512.name)) return &kStripAvx512;
  if (avx2 && (name.empty() || name == kStripAvx2.name)) return &kStripAvx2;
#endif
  return name.empty() || name == kStripPortable.name ? &kStripPortable : nullptr;
}

const StripLoops& loops() {
  const StripLoops* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    table = find_loops("");
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

// Samples of the input square from the logits' grid, computed once per axis.
class ResizeTable {
 public:
  explicit ResizeTable(const Axis& axis) {
    if (axis.direct) return;
    entries_.resize(static_cast<size_t>(axis.square));
    for (int i = 0; i < axis.square; ++i) {
      Entry& entry = entries_[static_cast<size_t>(i)];
      entry.base = resize_taps(i, axis.source, axis.square, entry.weight);
    }
  }

  int operator()(int i, double* weight) const {
    const Entry& entry = entries_[static_cast<size_t>(i)];
    memcpy(weight, entry.weight, sizeof entry.weight);
    return entry.base;
  }

 private:
  struct Entry {
    double weight[kResizeTaps];
    int base;
  };
  std::vector<Entry> entries_;
};

// Filters of the image columns, one plane per tap, padded to whole strips with zero weights.
struct ColumnPlan {
  int strips;
  std::vector<int> base;
  std::vector<float> weight;  // (kTaps, strips * kStrip)

  ColumnPlan(const Axis& axis, int width) : strips((width + kStrip - 1) / kStrip) {
    const size_t padded = static_cast<size_t>(strips) * kStrip;
    base.resize(padded);
    weight.assign(padded * kTaps, 0.0f);
    const ResizeTable resize(axis);
    for (int x = 0; x < width; ++x) {
      const Taps taps = axis_taps(axis, x, resize);
      base[static_cast<size_t>(x)] = taps.base;
      for (size_t k = 0; k < kTaps; ++k)
        weight[k * padded + static_cast<size_t>(x)] = taps.weight[k];
    }
    std::fill(base.begin() + width, base.end(), base[static_cast<size_t>(width) - 1]);
  }
};

// Filters of the image rows and the bands they form.
struct RowPlan {
  std::vector<float> weight;  // (height, kTapStride)
  std::vector<Band> bands;
  int begin, end;  // rows of samples in use, padded coordinates

  RowPlan(const Axis& axis, int height) {
    weight.assign(static_cast<size_t>(height) * kTapStride, 0.0f);
    const ResizeTable resize(axis);
    for (int y = 0; y < height; ++y) {
      const Taps taps = axis_taps(axis, y, resize);
      float sum = 0.0f, magnitude = 0.0f;
      for (int k = 0; k < kTaps; ++k) {
        weight[static_cast<size_t>(y) * kTapStride + static_cast<size_t>(k)] = taps.weight[k];
        sum += taps.weight[k];
        magnitude += std::fabs(taps.weight[k]);
      }
      if (bands.empty() || bands.back().base != taps.base)
        bands.push_back({y, y, taps.base, sum, sum, magnitude});
      Band& band = bands.back();
      band.end = y + 1;
      band.least = std::min(band.least, sum);
      band.greatest = std::max(band.greatest, sum);
      band.magnitude = std::max(band.magnitude, magnitude);
    }
    begin = bands.front().base;
    end = bands.back().base + kTaps;  // bases ascend
  }
};

// The plans used last. Pictures of one size come in rows (a film, many expressions), and at 640 x
// 480 making two plans costs half as much as all the rest.
template <class Plan>
class PlanCache {
 public:
  std::shared_ptr<const Plan> get(const Axis& axis, int length) {
    if (length > kLongest) return std::make_shared<const Plan>(axis, length);
    const Key key = {axis.scale, axis.offset, axis.source, axis.square, axis.direct, length};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < entries_.size(); ++i) {
        if (entries_[i].first != key) continue;
        std::rotate(entries_.begin(), entries_.begin() + static_cast<ptrdiff_t>(i),
                    entries_.begin() + static_cast<ptrdiff_t>(i) + 1);
        return entries_.front().second;
      }
    }
    auto plan = std::make_shared<const Plan>(axis, length);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (entries_.size() == kEntries) entries_.pop_back();
    entries_.insert(entries_.begin(), {key, plan});
    return plan;
  }

 private:
  static constexpr size_t kEntries = 16;
  static constexpr int kLongest = 1 << 14;  // bounds the cache at 16 plans of 0.5 MB
  using Key = std::tuple<double, double, int, int, bool, int>;

  std::mutex mutex_;
  std::vector<std::pair<Key, std::shared_ptr<const Plan>>> entries_;
};

PlanCache<ColumnPlan>& column_plans() {
  static auto* const cache = new PlanCache<ColumnPlan>;  // outlives every thread
  return *cache;
}

PlanCache<RowPlan>& row_plans() {
  static auto* const cache = new PlanCache<RowPlan>;
  return *cache;
}

struct StripResult {
  StripSummary summary = {0, 0, 0, -1};
  StripRuns runs;
};

// What one item needs while its strips are worked on.
struct Work {
  std::shared_ptr<const ColumnPlan> columns;
  std::shared_ptr<const RowPlan> rows;
  std::vector<float> samples;  // padded probabilities
  ptrdiff_t stride = 0;
  std::vector<StripResult> strips;
};

// Memory that only grows, and is not cleared.
template <class T>
class Buffer {
 public:
  T* at_least(size_t size) {
    if (size > size_) {
      data_.reset();  // first, so that the two are never held together
      size_ = 0;
      data_.reset(new T[size]);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  size_t size_ = 0;
};

// Buffers of one thread, kept between calls.
struct Scratch {
  Buffer<float> rows;        // horizontally filtered samples of one strip
  Buffer<uint64_t> bits;     // the strip's mask
  Buffer<uint32_t> changes;  // (kStrip, height) rows at which a column changes
};

Scratch& scratch() {
  thread_local Scratch buffers;
  return buffers;
}

void fill_samples(const MaskItem& item, Work& work) {
  const int width = item.x.source, height = item.y.source;
  work.stride = width + 2 * kPad;
  work.samples.resize(static_cast<size_t>(work.stride) * static_cast<size_t>(height + 2 * kPad) +
                      kSlack);
  float* const samples = work.samples.data();
  const int first = std::clamp(work.rows->begin - kPad, 0, height - 1);
  const int last = std::clamp(work.rows->end - 1 - kPad, 0, height - 1);
  std::vector<float> converted;
  if (item.half) converted.resize(static_cast<size_t>(width));
  for (int y = first; y <= last; ++y) {
    float* const row = samples + (y + kPad) * work.stride;
    const ptrdiff_t offset = static_cast<ptrdiff_t>(y) * width;
    const float* logits = static_cast<const float*>(item.logits) + offset;
    if (item.half) {
      loops().half_to_float(static_cast<const uint16_t*>(item.logits) + offset, converted.data(),
                            width);
      logits = converted.data();
    }
    loops().sigmoid(logits, row + kPad, width);
    std::fill(row, row + kPad, row[kPad]);
    std::fill(row + kPad + width, row + work.stride, row[kPad + width - 1]);
  }
  const auto repeat = [&](int from, int to) {
    std::copy_n(samples + from * work.stride, work.stride, samples + to * work.stride);
  };
  for (int y = work.rows->begin; y < first + kPad; ++y) repeat(first + kPad, y);
  for (int y = last + kPad + 1; y < work.rows->end; ++y) repeat(last + kPad, y);
}

void pack_bits(const uint64_t* bits, int rows, uint8_t* out, ptrdiff_t stride, int columns) {
  const size_t bytes = static_cast<size_t>(columns + 7) / 8;
  for (int y = 0; y < rows; ++y) {
    uint64_t word = bits[y];  // bit 0 is the first pixel; the packed order wants it on top
    word = (word & 0x5555555555555555ull) << 1 | (word >> 1 & 0x5555555555555555ull);
    word = (word & 0x3333333333333333ull) << 2 | (word >> 2 & 0x3333333333333333ull);
    word = (word & 0x0f0f0f0f0f0f0f0full) << 4 | (word >> 4 & 0x0f0f0f0f0f0f0f0full);
    memcpy(out + y * stride, &word, bytes);
  }
}

void encode_strip(const uint64_t* bits, int rows, int first_column, int columns, StripRuns& runs) {
  uint32_t* const changes = scratch().changes.at_least(static_cast<size_t>(rows) * kStrip);
  int count[kStrip] = {};
  for (int y = 1; y < rows; ++y) {
    for (uint64_t change = bits[y] ^ bits[y - 1]; change; change &= change - 1) {
      const int column = __builtin_ctzll(change);
      changes[static_cast<size_t>(column) * static_cast<size_t>(rows) +
              static_cast<size_t>(count[column]++)] = static_cast<uint32_t>(y);
    }
  }
  StripEncoder encoder(runs);
  runs.first = bits[0] & 1;
  bool above = runs.first;  // the pixel before a column's first is the last of the column before
  for (int column = 0; column < columns; ++column) {
    const uint32_t start =
        static_cast<uint32_t>(first_column + column) * static_cast<uint32_t>(rows);
    if ((bits[0] >> column & 1) != above) encoder.change(start);
    const uint32_t* row = changes + static_cast<size_t>(column) * static_cast<size_t>(rows);
    for (int i = 0; i < count[column]; ++i) encoder.change(start + row[i]);
    above = bits[rows - 1] >> column & 1;
  }
  runs.last = above;
  encoder.finish();
}

void run_strip(const MaskItem& item, Work& work, int strip) {
  const StripLoops& table = loops();
  const int first = strip * kStrip;
  const int columns = std::min(kStrip, item.width - first);
  const int taps = item.x.direct ? kDirectTaps : kTaps;
  const RowPlan& rows = *work.rows;
  Scratch& buffers = scratch();
  float* const filtered = buffers.rows.at_least(static_cast<size_t>(rows.end) * kStrip);
  uint64_t* const bits = buffers.bits.at_least(static_cast<size_t>(item.height));
  const ptrdiff_t plane = static_cast<ptrdiff_t>(work.columns->strips) * kStrip;
  table.horizontal(work.samples.data(), work.stride, rows.begin, rows.end,
                   work.columns->base.data() + first, work.columns->weight.data() + first, plane,
                   taps, filtered);
  table.vertical(filtered, rows.bands.data(), static_cast<int>(rows.bands.size()),
                 rows.weight.data(), taps, item.threshold, bits,
                 item.probabilities ? item.probabilities + first : nullptr, item.width, columns);
  StripResult& result = work.strips[static_cast<size_t>(strip)];
  result.summary = table.summarise(bits, item.height);
  if (item.mask) table.expand(bits, item.height, item.mask + first, item.width, columns);
  if (item.packed)
    pack_bits(bits, item.height, item.packed + first / 8, (item.width + 7) / 8, columns);
  if (item.rle) encode_strip(bits, item.height, first, columns, result.runs);
}

std::string join(std::vector<StripResult>& strips, int height, int width) {
  std::vector<StripRuns> runs(strips.size());
  std::vector<uint32_t> starts(strips.size());
  for (size_t i = 0; i < strips.size(); ++i) {
    runs[i] = std::move(strips[i].runs);
    starts[i] = static_cast<uint32_t>(i) * kStrip * static_cast<uint32_t>(height);
  }
  return join_strips(runs, starts, static_cast<int64_t>(height) * width);
}

void finish(const MaskItem& item, Work& work, MaskResult& result) {
  int x0 = item.width, x1 = 0, y0 = item.height, y1 = 0;
  for (size_t i = 0; i < work.strips.size(); ++i) {
    const StripSummary& summary = work.strips[i].summary;
    result.area += summary.area;
    if (!summary.columns) continue;
    const int first = static_cast<int>(i) * kStrip;
    x0 = std::min(x0, first + __builtin_ctzll(summary.columns));
    x1 = std::max(x1, first + 64 - __builtin_clzll(summary.columns));
    y0 = std::min(y0, summary.first);
    y1 = std::max(y1, summary.last + 1);
  }
  if (result.area > 0) {
    const int box[4] = {x0, y0, x1, y1};
    std::copy_n(box, 4, result.box);
  }
  if (item.rle) result.counts = join(work.strips, item.height, item.width);
}

}  // namespace

void upsample(const MaskItem* items, MaskResult* results, int count, int threads) {
  if (threads <= 0) threads = available_threads();
  int64_t pixels = 0;
  for (int i = 0; i < count; ++i) pixels += int64_t{items[i].height} * items[i].width;
  threads = static_cast<int>(std::min<int64_t>(threads, 1 + pixels / kPixelsPerThread));
  std::vector<Work> works(static_cast<size_t>(count));
  const auto prepare = [&](int i) {
    const MaskItem& item = items[i];
    Work& work = works[static_cast<size_t>(i)];
    work.columns = column_plans().get(item.x, item.width);
    work.rows = row_plans().get(item.y, item.height);
    work.strips.resize(static_cast<size_t>(work.columns->strips));
    fill_samples(item, work);
  };
  parallel(count, threads, prepare);
  struct Task {
    int item, strip;
  };
  std::vector<Task> tasks;
  for (int i = 0; i < count; ++i)
    for (int strip = 0; strip < works[static_cast<size_t>(i)].columns->strips; ++strip)
      tasks.push_back({i, strip});
  parallel(static_cast<int>(tasks.size()), threads, [&](int i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    run_strip(items[task.item], works[static_cast<size_t>(task.item)], task.strip);
  });
  for (int i = 0; i < count; ++i) finish(items[i], works[static_cast<size_t>(i)], results[i]);
}

std::string encode_mask(const uint8_t* mask, int height, int width) {
  const int strips = (width + kStrip - 1) / kStrip;
  std::vector<StripResult> results(static_cast<size_t>(strips));
  uint64_t* const bits = scratch().bits.at_least(static_cast<size_t>(height));
  for (int strip = 0; strip < strips; ++strip) {
    const int first = strip * kStrip, columns = std::min(kStrip, width - first);
    for (int y = 0; y < height; ++y) {
      const uint8_t* row = mask + static_cast<ptrdiff_t>(y) * width + first;
      uint64_t word = 0;
      for (int x = 0; x < columns; ++x) word |= static_cast<uint64_t>(row[x] != 0) << x;
      bits[y] = word;
    }
    encode_strip(bits, height, first, columns, results[static_cast<size_t>(strip)].runs);
  }
  return join(results, height, width);
}

const char* simd_name() { return loops().name; }

bool select_simd(const char* name) {
  const StripLoops* table = find_loops(name);
  if (table) chosen.store(table, std::memory_order_release);
  return table != nullptr;
}

}  // namespace cris
