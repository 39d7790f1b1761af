// The pool: a job is a number of chunks that threads claim one by one. A caller opens its job in a slot and computes it
// as the workers do; a worker joins a job by registering in the slot's state word. When no chunks are left, the caller
// closes the job and waits only for registered workers; a worker that the system has put to sleep delays no caller.
//
// A job's chunks are cut into parts of equal length, one for each thread. A thread claims those of its own part first, and
// then those of the others. Jobs whose chunks are rows of the same tokens leave them in the caches of one core; a line from
// a core that shares no cache takes eight times as long as from one that does.
//
// Jobs of several callers run at the same time. A worker joins the job with the fewest workers, and changes jobs between
// two chunks when another job has two fewer; no engine waits for another's step. Callers and workers together are never
// more than the largest share: with two callers on two cores, the worker sleeps.
#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "distance.h"
#include "inline.h"

struct mrs_pool {
  int threads;
};

namespace {
using Clock = std::chrono::steady_clock;
// The time that a worker looks for the next job before it sleeps: longer than the gap between two ops of a step, and shorter
// than that between two steps, in which readers of answers need its processor.
constexpr auto kSpin = std::chrono::microseconds(60);
// Jobs at a time that workers help with; a caller beyond them computes alone.
constexpr int kSlots = 16;
// A caller notes when it opened one of so many jobs.
constexpr int kOneOf = 8;
// A slot's state: workers registered, workers allowed, and whether the job is open.
constexpr uint64_t kCount = 0xffff, kAllowedOne = 1ull << 16, kOpen = 1ull << 32;

void name_thread() {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "mistralrs-pool");
#endif
}

inline int registered(uint64_t state) { return int(state & kCount); }
inline int allowed(uint64_t state) { return int(state / kAllowedOne & kCount); }

// Chunks of a job that are claimed in ascending order.
struct Part {
  alignas(64) std::atomic<int64_t> next{0};  // the first unclaimed one
  std::atomic<int64_t> end{0};

  bool has_chunks() const { return next.load(std::memory_order_relaxed) < end.load(std::memory_order_relaxed); }
};

struct Slot {
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<int> num_parts{0};
  mrs_chunk_fn fn = nullptr;
  void *context = nullptr;
  int jobs = 0;                             // of its callers
  std::optional<Clock::time_point> opened;  // where it was noted
  Part parts[kMostParts];
  alignas(64) std::atomic<bool> owned{false};  // by a caller

  void cut(int64_t chunks, int threads) {
    const int count = int(mrs_parts(chunks, threads));
    for (int i = 0; i < count; ++i) {
      const mrs_part part = mrs_part_at(chunks, count, i);
      parts[i].next.store(part.begin, std::memory_order_relaxed);
      parts[i].end.store(part.end, std::memory_order_relaxed);
    }
    num_parts.store(count, std::memory_order_relaxed);
  }

  bool has_chunks() const {
    const int count = num_parts.load(std::memory_order_relaxed);
    return std::any_of(parts, parts + count, [](const Part &part) { return part.has_chunks(); });
  }

  // Returns a chunk, of the part of the thread with this index if that has one, or -1: all are claimed.
  int64_t claim(int thread) {
    const int count = num_parts.load(std::memory_order_relaxed);
    for (int i = 0; i < count; ++i) {
      Part &part = parts[(thread + i) % count];
      if (!part.has_chunks()) continue;
      const int64_t chunk = part.next.fetch_add(1, std::memory_order_relaxed);
      if (chunk < part.end.load(std::memory_order_relaxed)) return chunk;
    }
    return -1;
  }

  bool join() {
    uint64_t s = state.load(std::memory_order_relaxed);
    return (s & kOpen) && registered(s) < allowed(s) &&
           state.compare_exchange_strong(s, s + 1, std::memory_order_acq_rel, std::memory_order_relaxed);
  }
};

class Pool {
 public:
  void run(int threads, mrs_chunk_fn fn, void *context, int64_t chunks) {
    if (size_.load(std::memory_order_relaxed) < threads) start_after_fork();
    Slot *slot = threads > 1 ? own_slot() : nullptr;
    if (!slot) {
      for (int64_t i = 0; i < chunks; ++i) fn(context, i);
      return;
    }
    slot->fn = fn;
    slot->context = context;
    slot->opened.reset();
    if (slot->jobs++ % kOneOf == 0) slot->opened = Clock::now();
    slot->cut(chunks, threads);
    slot->state.store(kOpen | (threads - 1) * kAllowedOne, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0 && look().job) wake(threads - 1);
    for (int64_t chunk; (chunk = slot->claim(0)) >= 0;) fn(context, chunk);
    slot->state.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int i = 0; slot->state.load(std::memory_order_acquire) & kCount; ++i) {
      if (i < 2000)
        relax();
      else
        std::this_thread::yield();  // a registered worker may be waiting for this core
    }
    slot->owned.store(false, std::memory_order_release);
  }

  // Both throw std::exception when the system starts no more threads; nothing has changed then.
  void add_share(int threads) {
    std::lock_guard<std::mutex> lock(shares_mutex);
    shares.push_back(threads);
    try {
      resize();
    } catch (const std::exception &) {
      shares.pop_back();
      resize();
      throw;
    }
  }

  void remove_share(int threads) {
    std::lock_guard<std::mutex> lock(shares_mutex);
    shares.erase(std::find(shares.begin(), shares.end(), threads));
    resize();
  }

  // Whether all workers are far: of many that join a job at once, each but the first takes long.
  bool is_far() const {
    const mrs_distance assumed = assumed_.load(std::memory_order_relaxed);
    if (assumed != MRS_DISTANCE_MEASURED) return assumed == MRS_DISTANCE_FAR;
    const int far = far_workers_.load(std::memory_order_relaxed);
    return far > 0 && far + 1 >= size_.load(std::memory_order_relaxed);
  }
  void assume(mrs_distance distance) { assumed_.store(distance); }

  int workers() {
    std::lock_guard<std::mutex> lock(shares_mutex);
    return int(workers_.size());
  }

  std::mutex shares_mutex;
  std::vector<int> shares;

 private:
  // A child of fork has none of the threads: its pool is a new one, which starts them with its first job.
  void start_after_fork() {
    std::lock_guard<std::mutex> lock(shares_mutex);
    try {
      resize();
    } catch (const std::exception &) {
      // the results are the same with fewer workers
    }
  }

  void resize() {
    const int wanted = shares.empty() ? 1 : *std::max_element(shares.begin(), shares.end());
    while (int(workers_.size()) + 1 < wanted) {
      const int index = int(workers_.size());
      size_.store(index + 2);  // before the worker reads it
      try {
        workers_.emplace_back([this, index] { work(index); });
      } catch (const std::exception &) {
        size_.store(index + 1);
        throw;
      }
    }
    if (int(workers_.size()) + 1 == wanted) return;
    {
      std::lock_guard<std::mutex> lock(park_mutex_);
      size_.store(wanted);
    }
    park_.notify_all();
    for (; int(workers_.size()) + 1 > wanted; workers_.pop_back()) workers_.back().join();
  }

  Slot *own_slot() {
    for (int i = 0; i < kSlots; ++i) {
      if (slots_[i].owned.load(std::memory_order_relaxed)) continue;
      if (slots_[i].owned.exchange(true, std::memory_order_acquire)) continue;
      for (int used = used_.load(); used <= i && !used_.compare_exchange_weak(used, i + 1);) {
      }
      return &slots_[i];
    }
    return nullptr;
  }

  void wake(int helpers) {
    { std::lock_guard<std::mutex> lock(park_mutex_); }
    if (helpers >= parked_.load(std::memory_order_relaxed)) {
      park_.notify_all();
    } else {
      for (int i = 0; i < helpers; ++i) park_.notify_one();
    }
  }

  struct Search {
    Slot *job;  // the open job with the fewest workers that takes another, or null
    bool full;  // no more threads may compute
  };

  Search look() {
    Slot *best = nullptr;
    int computing = 0, fewest = 0;
    for (int i = 0, used = used_.load(std::memory_order_seq_cst); i < used; ++i) {
      const uint64_t s = slots_[i].state.load(std::memory_order_seq_cst);
      if (!(s & kOpen)) continue;
      computing += 1 + registered(s);
      if (registered(s) >= allowed(s) || !slots_[i].has_chunks()) continue;
      if (!best || registered(s) < fewest) best = &slots_[i], fewest = registered(s);
    }
    const bool full = computing >= size_.load(std::memory_order_relaxed);
    return {full ? nullptr : best, full};
  }

  // Unregisters a worker and returns true if another job needs it more, or too many threads compute. The decision is bound
  // to the state that it was made from; several workers therefore do not leave at once for the same reason.
  bool left(Slot &slot) {
    const int used = used_.load(std::memory_order_relaxed);
    if (used == 1) return false;
    for (;;) {
      uint64_t mine = slot.state.load(std::memory_order_relaxed);
      if (!(mine & kOpen)) return false;
      int computing = 1 + registered(mine);
      bool needed = false;
      for (int i = 0; i < used; ++i) {
        const uint64_t s = slots_[i].state.load(std::memory_order_relaxed);
        if (&slots_[i] == &slot || !(s & kOpen)) continue;
        computing += 1 + registered(s);
        needed = needed || (registered(s) < allowed(s) && registered(s) + 1 < registered(mine) && slots_[i].has_chunks());
      }
      if (!needed && computing <= size_.load(std::memory_order_relaxed)) return false;
      if (slot.state.compare_exchange_strong(mine, mine - 1, std::memory_order_acq_rel)) return true;
    }
  }

  void help(Slot &slot, int thread) {
    const mrs_chunk_fn fn = slot.fn;
    void *const context = slot.context;
    for (int64_t chunk; (chunk = slot.claim(thread)) >= 0;) {
      fn(context, chunk);
      if (left(slot)) return;
    }
    slot.state.fetch_sub(1, std::memory_order_acq_rel);
  }

  bool retired(int index) const { return index + 1 >= size_.load(std::memory_order_relaxed); }

  // Returns a job that the worker has joined; null after a while without one, or at once when the callers need every core.
  Slot *await_job() {
    for (auto until = Clock::now() + kSpin; Clock::now() < until;) {
      for (int i = 0; i < 32; ++i) {
        const Search found = look();
        if (found.job && found.job->join()) return found.job;
        if (found.full) return nullptr;
        relax();
      }
    }
    return nullptr;
  }

  void work(int index) {
    name_thread();
    Distance distance;
    while (!retired(index)) {
      if (Slot *job = await_job()) {
        if (job->opened && distance.add(Clock::now() - *job->opened)) far_workers_.fetch_add(distance.is_far() ? 1 : -1);
        help(*job, index + 1);
        continue;
      }
      std::unique_lock<std::mutex> lock(park_mutex_);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      park_.wait(lock, [&] { return retired(index) || look().job; });
      parked_.fetch_sub(1, std::memory_order_relaxed);
    }
    if (distance.is_far()) far_workers_.fetch_sub(1, std::memory_order_relaxed);
  }

  Slot slots_[kSlots];
  alignas(64) std::atomic<int> used_{1};  // slots that have ever had a job
  std::atomic<int> size_{1};              // workers and one caller
  std::atomic<int> parked_{0};
  std::atomic<int> far_workers_{0};
  std::atomic<mrs_distance> assumed_{MRS_DISTANCE_MEASURED};
  std::mutex park_mutex_;
  std::condition_variable park_;
  std::vector<std::thread> workers_;
};

// Never destroyed: workers may be asleep in it when the process ends.
std::atomic<Pool *> process_pool{new Pool};

Pool &pool_of_process() { return *process_pool.load(std::memory_order_relaxed); }

// In a child of fork the parent's pool belongs to threads that do not exist there; the child does not touch it.
void replace_in_child() {
  Pool *fresh = new Pool;
  fresh->shares = pool_of_process().shares;
  process_pool.store(fresh);
}

const int registered_for_fork = pthread_atfork([] { pool_of_process().shares_mutex.lock(); },
                                               [] { pool_of_process().shares_mutex.unlock(); }, replace_in_child);
}  // namespace

void mrs_pool_for(mrs_pool *pool, mrs_chunk_fn fn, void *context, int64_t chunks) {
  if (chunks > 0) pool_of_process().run(pool->threads, fn, context, chunks);
}

int mrs_pool_size(const mrs_pool *pool) { return pool->threads; }

bool mrs_pool_is_far(const mrs_pool *pool) { return pool->threads > 1 && pool_of_process().is_far(); }

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT mrs_pool *mrs_pool_acquire(int threads) {
  if (threads < 1 || threads > int(kCount)) return nullptr;
  try {
    pool_of_process().add_share(threads);
    return new mrs_pool{threads};
  } catch (const std::exception &) {
    return nullptr;
  }
}

EXPORT void mrs_pool_release(mrs_pool *pool) {
  pool_of_process().remove_share(pool->threads);
  delete pool;
}

EXPORT int mrs_pool_workers() { return pool_of_process().workers(); }

EXPORT void mrs_pool_assume(mrs_distance distance) { pool_of_process().assume(distance); }
