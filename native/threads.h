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
    State& state = *state_;
    {
      std::lock_guard lock(state.mutex);
      state.job = &job;
      state.pending = n_threads_ - 1;
      state.error = nullptr;
      ++state.generation;
    }
    state.wake.notify_all();
    work(state, 0, job);
    spin_until([&] { return state.pending == 0; });
    std::unique_lock lock(state.mutex);
    state.done.wait(lock, [&] { return state.pending == 0; });
    if (state.error) std::rethrow_exception(state.error);
  }

  // Cuts 0..n into size() ranges, in order, and calls job(begin, end) for each.
  void run_ranges(std::size_t n, const std::function<void(std::size_t, std::size_t)>& job) {
    run([&](int thread) { job(n * thread / n_threads_, n * (thread + 1) / n_threads_); });
  }

 private:
  struct State {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void(int)>* job = nullptr;
    std::atomic<int> pending = 0;
    std::atomic<unsigned long> generation = 0;
    std::exception_ptr error;
  };

  static void work(State& state, int thread, const std::function<void(int)>& job) {
    try {
      job(thread);
    } catch (...) {
      std::lock_guard lock(state.mutex);
      if (!state.error) state.error = std::current_exception();
    }
  }

  void start() {
    leave_to_parent();
    if (state_) return;
    state_ = std::make_unique<State>();
    process_ = ::getpid();
    for (int i = 1; i < n_threads_; ++i) state_->threads.emplace_back([&state = *state_, i] { serve(state, i); });
  }

  // After a fork the threads do not exist here, but the locks remember them: notifying or destroying a condition that
  // they wait for would wait for them. So their state stays where it is, and nobody touches it again.
  void leave_to_parent() {
    if (state_ && process_ != ::getpid()) static_cast<void>(state_.release());
  }

  static void serve(State& state, int thread) {
    unsigned long seen = 0;
    for (;;) {
      const std::function<void(int)>* job;
      spin_until([&] { return state.generation != seen; });
      {
        std::unique_lock lock(state.mutex);
        state.wake.wait(lock, [&] { return state.generation != seen; });
        seen = state.generation;
        job = state.job;
      }
      if (!job) return;
      work(state, thread, *job);
      {
        std::lock_guard lock(state.mutex);
        --state.pending;
      }
      state.done.notify_one();
    }
  }

  void stop() {
    leave_to_parent();
    if (!state_) return;
    {
      std::lock_guard lock(state_->mutex);
      state_->job = nullptr;
      ++state_->generation;
    }
    state_->wake.notify_all();
    for (auto& thread : state_->threads) thread.join();
  }

  int n_threads_;
  pid_t process_ = 0;
  std::unique_ptr<State> state_;
};

}  // namespace sasrec
