// The pool of kernels/csrc/pool.cpp under several callers, while it grows and shrinks, and after a fork. `make sanitize`
// builds it with one sanitizer after the other. Exits with 1 and the line that failed.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "distance.h"
#include "pool.h"

// ThreadSanitizer follows no fork of several threads. AddressSanitizer's allocator waits in the child for what a thread
// of the parent had locked; the system's does not.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define MRS_FORK 1
#endif

namespace {
constexpr unsigned kHangs = 240;  // seconds after which the whole program is taken to hang

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::fprintf(stderr, "line %d: %s is not so\n", __LINE__, #condition); \
      _exit(1);                                                           \
    }                                                                     \
  } while (0)

// Every chunk is computed once. The counts are plain integers: two threads with one chunk are a race.
void run_one(mrs_pool *pool, int64_t chunks) {
  std::vector<int> counts(chunks, 0);
  parallel_for(pool, chunks, [&](int64_t chunk) { ++counts[chunk]; });
  for (int count : counts) CHECK(count == 1);
}

void every_chunk_once() {
  for (int threads : {1, 2, 3, 8}) {
    mrs_pool *pool = mrs_pool_acquire(threads);
    CHECK(mrs_pool_workers() == threads - 1);
    for (int64_t chunks = 0; chunks < 70; ++chunks) run_one(pool, chunks);
    for (int i = 0; i < 2000; ++i) run_one(pool, 1 + i % 9);
    mrs_pool_release(pool);
    CHECK(mrs_pool_workers() == 0);
  }
}

// One job of 16 that comes soon tells that a worker is near; it is far when none does.
void distance_is_the_least_time() {
  using std::chrono::nanoseconds;
  Distance distance;
  const auto add = [&](int jobs, int ns) {
    bool changed = false;
    for (int i = 0; i < jobs; ++i) changed |= distance.add(nanoseconds(ns));
    return changed;
  };
  CHECK(!add(16, 100) && !distance.is_far());
  CHECK(!add(15, 300) && !distance.is_far());
  CHECK(add(1, 300) && distance.is_far());
  CHECK(!add(16, 9000) && distance.is_far());
  CHECK(!add(15, 300) && add(1, 100) && !distance.is_far());
}

// A thread alone has no distance.
void distance_is_measured_or_assumed() {
  mrs_pool *alone = mrs_pool_acquire(1), *pool = mrs_pool_acquire(3);
  for (mrs_distance assumed : {MRS_DISTANCE_FAR, MRS_DISTANCE_NEAR, MRS_DISTANCE_MEASURED}) {
    mrs_pool_assume(assumed);
    for (int i = 0; i < 1000; ++i) run_one(pool, 6);
    CHECK(!mrs_pool_is_far(alone));
    CHECK(assumed == MRS_DISTANCE_MEASURED || mrs_pool_is_far(pool) == (assumed == MRS_DISTANCE_FAR));
  }
  mrs_pool_release(pool);
  mrs_pool_release(alone);
}

// A thread begins with its own part: the caller with the first, the worker with the second, in every job.
void parts_stay_with_their_threads() {
  mrs_pool *pool = mrs_pool_acquire(2);
  std::thread::id worker;
  for (int i = 0; i < 100; ++i) {
    std::thread::id of[6];
    std::atomic<int> came{0};  // to the first chunks of both parts, which wait for each other
    parallel_for(pool, 6, [&](int64_t chunk) {
      of[chunk] = std::this_thread::get_id();
      if (chunk % 3) return;
      ++came;
      while (came < 2) std::this_thread::yield();
    });
    CHECK(of[0] == std::this_thread::get_id());
    CHECK(of[3] != of[0] && (i == 0 || of[3] == worker));
    worker = of[3];
  }
  mrs_pool_release(pool);
}

void one_pool_of_the_largest_share() {
  mrs_pool *small = mrs_pool_acquire(2), *large = mrs_pool_acquire(6), *same = mrs_pool_acquire(6);
  CHECK(mrs_pool_workers() == 5);
  mrs_pool_release(large);
  CHECK(mrs_pool_workers() == 5);
  mrs_pool_release(same);
  CHECK(mrs_pool_workers() == 1);
  mrs_pool_release(small);
  CHECK(mrs_pool_workers() == 0);
  CHECK(mrs_pool_acquire(0) == nullptr);
  CHECK(mrs_pool_acquire(1 << 20) == nullptr);
}

// The most threads that compute a job of the share at the same time.
int widest(mrs_pool *pool) {
  std::atomic<int> now{0}, most{0};
  parallel_for(pool, 64, [&](int64_t) {
    int mine = ++now;
    for (int seen = most; seen < mine && !most.compare_exchange_weak(seen, mine);) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    --now;
  });
  return most;
}

void share_is_kept() {
  mrs_pool *small = mrs_pool_acquire(2), *large = mrs_pool_acquire(6);
  int small_most = 0, large_most = 0;
  for (int i = 0; i < 10; ++i) {
    CHECK(widest(small) <= 2);
    CHECK(widest(large) <= 6);
    small_most = small_most > 1 ? small_most : widest(small);
    large_most = large_most > 2 ? large_most : widest(large);
  }
  CHECK(small_most == 2);
  CHECK(large_most > 2);
  mrs_pool_release(small);
  mrs_pool_release(large);
}

// A caller's job goes on while another's is stuck: the first is not done before the other has made many steps.
void callers_do_not_wait() {
  mrs_pool *first = mrs_pool_acquire(3), *second = mrs_pool_acquire(3);
  std::atomic<int> steps{0};
  std::atomic<bool> inside{false};
  std::thread stuck([&] {
    parallel_for(first, 8, [&](int64_t) {
      inside = true;
      while (steps < 200) std::this_thread::yield();
    });
  });
  while (!inside) std::this_thread::yield();
  for (int i = 0; i < 200; ++i) run_one(second, 16), ++steps;
  stuck.join();
  mrs_pool_release(first);
  mrs_pool_release(second);
}

// More callers than the pool has slots, while shares come and go, also inside the callers.
void callers_beside_growth(int callers, int jobs) {
  std::atomic<bool> done{false};
  std::thread changes([&] {
    for (unsigned i = 0; !done; ++i) mrs_pool_release(mrs_pool_acquire(1 + int(i % 7)));
  });
  std::vector<std::thread> threads;
  for (int c = 0; c < callers; ++c) {
    threads.emplace_back([=] {
      mrs_pool *pool = mrs_pool_acquire(1 + c % 4);
      for (int i = 0; i < jobs; ++i) {
        run_one(pool, 1 + (i * 7 + c) % 40);
        if (i % 100 == 99) mrs_pool_release(pool), pool = mrs_pool_acquire(1 + (c + i) % 4);
      }
      mrs_pool_release(pool);
    });
  }
  for (std::thread &thread : threads) thread.join();
  done = true;
  changes.join();
  CHECK(mrs_pool_workers() == 0);
}

void one_share_for_many_callers() {
  mrs_pool *pool = mrs_pool_acquire(4);
  std::vector<std::thread> threads;
  for (int c = 0; c < 4; ++c)
    threads.emplace_back([=] {
      for (int i = 0; i < 500; ++i) run_one(pool, 1 + i % 30);
    });
  for (std::thread &thread : threads) thread.join();
  mrs_pool_release(pool);
}

void start_and_stop(int times) {
  for (int i = 0; i < times; ++i) {
    mrs_pool *pool = mrs_pool_acquire(4);
    if (i % 2) run_one(pool, 12);
    mrs_pool_release(pool);
  }
  CHECK(mrs_pool_workers() == 0);
}

#if MRS_FORK
// A child has no workers of the parent, whatever these were doing; it starts its own with its first job.
void forked_child_computes() {
  mrs_pool *pool = mrs_pool_acquire(4), *other = mrs_pool_acquire(3);
  std::atomic<bool> done{false};
  std::thread busy([&] {
    while (!done) run_one(other, 20), mrs_pool_release(mrs_pool_acquire(6));
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      CHECK(mrs_pool_workers() == 0);
      for (int j = 0; j < 20; ++j) run_one(pool, 30);
      CHECK(mrs_pool_workers() >= 3);
      mrs_pool_release(pool);
      _exit(0);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    run_one(pool, 30);
  }
  done = true;
  busy.join();
  mrs_pool_release(pool);
  mrs_pool_release(other);
}
#endif
}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1;
  alarm(kHangs);
  for (int round = 0; round < rounds; ++round) {
    every_chunk_once();
    distance_is_the_least_time();
    distance_is_measured_or_assumed();
    parts_stay_with_their_threads();
    one_pool_of_the_largest_share();
    share_is_kept();
    callers_do_not_wait();
    callers_beside_growth(3, 2000);
    callers_beside_growth(24, 300);
    one_share_for_many_callers();
    start_and_stop(300);
#if MRS_FORK
    forked_child_computes();
#endif
  }
  std::puts("pool: every job was whole");
  return 0;
}
