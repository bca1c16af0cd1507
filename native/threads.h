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
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
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

// Starts a thread that does the work. Tests give a pool one that fails.
using StartThread = std::function<std::thread(std::function<void()>)>;

class ThreadPool {
 public:
  explicit ThreadPool(
      int n_threads, StartThread start_thread = [](auto work) { return std::thread(std::move(work)); })
      : n_threads_(n_threads < 1 ? 1 : n_threads), start_thread_(std::move(start_thread)) {}
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  int size() const { return n_threads_; }

  // Calls job(thread) once on each of size() threads, the caller among them, and waits. The first exception is
  // rethrown. Throws std::runtime_error, before any call, if a thread cannot be started; the next run tries again.
  void run(const std::function<void(int)>& job) {
    if (n_threads_ == 1) return job(0);
    start();
    Crew& crew = *crew_;
    {
      std::lock_guard lock(crew.mutex);
      crew.job = &job;
      crew.pending = n_threads_ - 1;
      crew.error = nullptr;
      ++crew.generation;
    }
    crew.wake.notify_all();
    work(crew, 0, job);
    spin_until([&] { return crew.pending == 0; });
    std::unique_lock lock(crew.mutex);
    crew.done.wait(lock, [&] { return crew.pending == 0; });
    if (crew.error) std::rethrow_exception(std::exchange(crew.error, nullptr));
  }

  // Cuts 0..n into size() ranges, in order, and calls job(begin, end) for each.
  void run_ranges(std::size_t n, const std::function<void(std::size_t, std::size_t)>& job) {
    run([&](int thread) { job(n * thread / n_threads_, n * (thread + 1) / n_threads_); });
  }

 private:
  // The threads of one process, and all that they share.
  struct Crew {
    pid_t process = ::getpid();
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void(int)>* job = nullptr;  // null: the end
    std::atomic<int> pending = 0;
    std::atomic<unsigned long> generation = 0;
    std::exception_ptr error;
  };

  static void work(Crew& crew, int thread, const std::function<void(int)>& job) {
    try {
      job(thread);
    } catch (...) {
      std::lock_guard lock(crew.mutex);
      if (!crew.error) crew.error = std::current_exception();
    }
  }

  void start() {
    if (crew_ && crew_->process == ::getpid()) return;
    leave_to_parent();
    crew_ = std::make_unique<Crew>();
    try {
      crew_->threads.reserve(n_threads_ - 1);
      for (int i = 1; i < n_threads_; ++i) start(i);
    } catch (...) {  // no job may wait for a crew that is not whole
      stop();
      throw;
    }
  }

  void start(int i) try {
    crew_->threads.push_back(start_thread_([&crew = *crew_, i] { serve(crew, i); }));
  } catch (const std::system_error& error) {
    throw std::runtime_error("thread " + std::to_string(i + 1) + " of " + std::to_string(n_threads_) +
                             " could not be started (" + error.code().message() + "); use fewer threads");
  }

  static void serve(Crew& crew, int thread) {
    for (unsigned long seen = 0;;) {
      const std::function<void(int)>* job;
      spin_until([&] { return crew.generation != seen; });
      {
        std::unique_lock lock(crew.mutex);
        crew.wake.wait(lock, [&] { return crew.generation != seen; });
        seen = crew.generation;
        job = crew.job;
      }
      if (!job) return;
      work(crew, thread, *job);
      {
        std::lock_guard lock(crew.mutex);
        --crew.pending;
      }
      crew.done.notify_one();
    }
  }

  void stop() {
    if (!crew_) return;
    if (crew_->process != ::getpid()) return leave_to_parent();
    {
      std::lock_guard lock(crew_->mutex);
      crew_->job = nullptr;
      ++crew_->generation;
    }
    crew_->wake.notify_all();
    for (auto& thread : crew_->threads) thread.join();
    crew_.reset();
  }

  // After a fork the threads do not exist here, and to destroy what they waited for would wait for them for ever.
  void leave_to_parent() { (void)crew_.release(); }

  int n_threads_;
  StartThread start_thread_;
  std::unique_ptr<Crew> crew_;
};

}  // namespace sasrec
