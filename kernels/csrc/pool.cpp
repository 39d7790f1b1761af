// The pool: jobs are chunks claimed one by one; a worker joins a job by registering in the job's state word, and the
// caller, once the chunks have run out, closes the job and waits only for those that are registered. A worker that the
// system has put to sleep therefore delays nobody.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void pause() { _mm_pause(); }
#elif defined(__aarch64__)
static inline void pause() { asm volatile("yield"); }
#else
static inline void pause() {}
#endif

namespace {
using Clock = std::chrono::steady_clock;
// How long a worker looks for the next job before it sleeps: longer than the gap between two ops of a step.
constexpr auto kSpin = std::chrono::microseconds(150);
constexpr uint64_t kOpen = 1ull << 31, kCount = kOpen - 1, kEpoch = 1ull << 32;
}  // namespace

struct mrs_pool {
  // high half: number of the job; bit 31: open; low bits: workers registered
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) mrs_chunk_fn fn = nullptr;
  void *context = nullptr;
  int64_t chunks = 0;
  std::mutex job_mutex;  // two engines may share the pool: one job at a time
  std::mutex park_mutex;
  std::condition_variable park;
  std::atomic<int> parked{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;

  void work() {
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) fn(context, chunk);
  }

  bool join(uint64_t &seen) {
    uint64_t s = state.load(std::memory_order_acquire);
    if (!(s & kOpen) || s / kEpoch == seen) return false;
    if (!state.compare_exchange_strong(s, s + 1, std::memory_order_acq_rel)) return false;
    seen = s / kEpoch;
    work();
    state.fetch_sub(1, std::memory_order_acq_rel);
    return true;
  }

  bool job_waiting(uint64_t seen) const {
    uint64_t s = state.load(std::memory_order_seq_cst);
    return stop.load(std::memory_order_relaxed) || ((s & kOpen) && s / kEpoch != seen);
  }

  void worker() {
    uint64_t seen = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      auto until = Clock::now() + kSpin;
      bool joined = false;
      while (!joined && Clock::now() < until) {
        for (int i = 0; i < 32 && !(joined = join(seen)); ++i) pause();
      }
      if (joined) continue;
      std::unique_lock<std::mutex> lock(park_mutex);
      parked.fetch_add(1, std::memory_order_seq_cst);
      park.wait(lock, [&] { return job_waiting(seen); });
      parked.fetch_sub(1, std::memory_order_relaxed);
    }
  }
};

void mrs_pool_for(mrs_pool *pool, mrs_chunk_fn fn, void *context, int64_t chunks) {
  if (pool->workers.empty()) {
    for (int64_t i = 0; i < chunks; ++i) fn(context, i);
    return;
  }
  std::lock_guard<std::mutex> job(pool->job_mutex);
  pool->fn = fn;
  pool->context = context;
  pool->chunks = chunks;
  pool->next.store(0, std::memory_order_relaxed);
  uint64_t epoch = pool->state.load(std::memory_order_relaxed) / kEpoch + 1;
  pool->state.store(epoch * kEpoch | kOpen, std::memory_order_seq_cst);
  if (pool->parked.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(pool->park_mutex); }
    pool->park.notify_all();
  }
  pool->work();
  pool->state.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int i = 0; pool->state.load(std::memory_order_acquire) & kCount; ++i) {
    if (i < 2000)
      pause();
    else
      std::this_thread::yield();  // a registered worker may be waiting for this very core
  }
}

int mrs_pool_size(const mrs_pool *pool) { return static_cast<int>(pool->workers.size()) + 1; }

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT mrs_pool *mrs_pool_create(int threads) {
  mrs_pool *pool = new mrs_pool;
  for (int i = 1; i < threads; ++i) pool->workers.emplace_back([pool] { pool->worker(); });
  return pool;
}

EXPORT void mrs_pool_destroy(mrs_pool *pool) {
  {
    std::lock_guard<std::mutex> lock(pool->park_mutex);
    pool->stop.store(true);
  }
  pool->park.notify_all();
  for (std::thread &worker : pool->workers) worker.join();
  delete pool;
}
