#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace cris {
namespace {

struct Job {
  Job(const std::function<void(int)>& work, int tasks) : task(work), count(tasks) {}

  const std::function<void(int)>& task;
  const int count;
  std::atomic<int> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  void work() {
    for (int i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn) {
      job.work();
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job_ = &job;
      seats_ = helpers;
    }
    wake_.notify_all();
    job.work();
    // Threads that have not woken by now find no seat: nobody waits for them.
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    seats_ = 0;
    left_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void grow(int helpers) {
    try {
      for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those that exist, and the caller, do the work.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++active_;
      Job& job = *job_;
      lock.unlock();
      job.work();
      lock.lock();
      if (--active_ == 0) left_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_, left_;
  Job* job_ = nullptr;
  int size_ = 0, seats_ = 0, active_ = 0;
};

// Never destroyed: its threads may outlive static destructors. A forked child has none of the
// threads and perhaps a locked mutex, so it starts with a new pool.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

int available_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

void parallel(int count, int threads, const std::function<void(int)>& task) {
  if (threads > count) threads = count;
  Job job(task, count);
  if (threads > 1)
    the_pool().run(job, threads - 1);
  else
    job.work();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace cris
