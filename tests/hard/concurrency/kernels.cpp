// The CPU kernels from many threads at once, for ThreadSanitizer: kernels SECONDS.
//
// Each thread takes pictures of its own sizes, so that plans are made, found and thrown out by all;
// each result is held against the one that a single thread gave. Exit 1 if any differs; the
// sanitizer ends the process by itself at a race.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/threads.h"
#include "kernels/mask.h"

namespace {

constexpr int kThreads = 8, kSide = 26, kSquare = 104;
constexpr int kSizes[][2] = {{30, 40}, {333, 250}, {7, 900}, {1, 1}, {480, 640}, {1200, 1000}};

struct Picture {
  std::vector<float> logits = std::vector<float>(kSide * kSide);
  std::vector<uint8_t> mask;
  cris::MaskItem item;
  cris::MaskResult result;

  Picture(int height, int width, unsigned seed) : mask(static_cast<size_t>(height) * width) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& logit : logits) logit = normal(random);
    const double larger = height > width ? height : width;
    item.logits = logits.data();
    item.y = item.x = {kSquare / larger, 0.0, kSide, kSquare, false};
    item.height = height;
    item.width = width;
    item.threshold = 0.35f;
    item.mask = mask.data();
    item.rle = true;
  }
};

std::vector<Picture> pictures() {
  std::vector<Picture> all;
  // More sizes than the cache of plans holds.
  for (unsigned i = 0; i < 24; ++i)
    all.emplace_back(kSizes[i % 6][0] + static_cast<int>(i / 6), kSizes[i % 6][1], i);
  for (Picture& one : all) one.item.logits = one.logits.data(), one.item.mask = one.mask.data();
  return all;
}

bool same(const Picture& a, const Picture& b) {
  return a.mask == b.mask && a.result.counts == b.result.counts && a.result.area == b.result.area;
}

}  // namespace

int main(int, char** arguments) {
  std::vector<Picture> golden = pictures();
  for (Picture& one : golden) cris::upsample(&one.item, &one.result, 1, 1);
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(static_cast<long>(1000 * atof(arguments[1])));
  std::atomic<long> rounds{0}, wrong{0};
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < kThreads; ++number)
    threads.emplace_back([&, number] {
      std::vector<Picture> own = pictures();
      std::mt19937 random(number);
      while (std::chrono::steady_clock::now() < end) {
        const size_t at = random() % own.size();
        Picture& one = own[at];
        one.result = {};
        cris::upsample(&one.item, &one.result, 1, static_cast<int>(1 + random() % 4));
        wrong += !same(one, golden[at]);
        const std::string counts =
            cris::encode_mask(one.mask.data(), one.item.height, one.item.width);
        wrong += counts != one.result.counts;
        ++rounds;
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::printf("%ld masks, %ld wrong, %s\n", rounds.load(), wrong.load(), cris::simd_name());
  return wrong != 0;
}
