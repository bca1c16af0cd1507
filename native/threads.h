// A few threads that wait for work. No OpenMP: torch brings its own copy of that, and two of them in one process fight.
//
// Waiting threads look for work for a moment before they sleep: the parallel parts of a training step, and the steps
// themselves, follow each other closely, and waking a thread takes longer than some of them.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sasrec {

inline constexpr std::chrono::microseconds kSpin{400};  // longer than Python takes from one call to the next

// Looks at `done` for kSpin; returns whether it became true.
template <typename Condition>
bool spin_until(Condition&& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 100; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads) {}
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  int size() const { return n_threads_; }

  // Calls job(thread) once on each of size() threads, the caller among them, and waits. The first exception is
  // rethrown.
  void run(const std::function<void(int)>& job) {
    if (n_threads_ == 1) return job(0);
    start();
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      pending_ = n_threads_ - 1;
      error_ = nullptr;
      ++generation_;
    }
    wake_.notify_all();
    work(0, job);
    spin_until([this] { return pending_ == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

  // Cuts 0..n into size() ranges, in order, and calls job(begin, end) for each.
  void run_ranges(std::size_t n, const std::function<void(std::size_t, std::size_t)>& job) {
    run([&](int thread) { job(n * thread / n_threads_, n * (thread + 1) / n_threads_); });
  }

 private:
  void work(int thread, const std::function<void(int)>& job) {
    try {
      job(thread);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void start() {
    if (!threads_.empty() && process_ == ::getpid()) return;
    for (auto& thread : threads_) thread.detach();  // after a fork they do not exist here
    threads_.clear();
    process_ = ::getpid();
    for (int i = 1; i < n_threads_; ++i)
      threads_.emplace_back([this, i, seen = generation_.load()] { serve(i, seen); });
  }

  void serve(int thread, unsigned long seen) {
    for (;;) {
      const std::function<void(int)>* job;
      spin_until([&] { return generation_ != seen; });
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        job = job_;
      }
      if (!job) return;
      work(thread, *job);
      {
        std::lock_guard lock(mutex_);
        --pending_;
      }
      done_.notify_one();
    }
  }

  void stop() {
    if (threads_.empty()) return;
    if (process_ != ::getpid()) {
      for (auto& thread : threads_) thread.detach();
      return;
    }
    {
      std::lock_guard lock(mutex_);
      job_ = nullptr;
      ++generation_;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int n_threads_;
  std::vector<std::thread> threads_;
  pid_t process_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<int> pending_ = 0;
  std::atomic<unsigned long> generation_ = 0;
  std::exception_ptr error_;
};

}  // namespace sasrec
