// The process's pool of threads. Every engine computes on a share of it, so that two engines do not start two sets of
// threads that compete for the cores.
#pragma once
#include <cstdint>

// A share: the number of threads, the caller's included, that may compute a job of its holder.
struct mrs_pool;
typedef void (*mrs_chunk_fn)(void *context, int64_t chunk);

// Runs fn(context, 0 .. chunks - 1) on the caller and on workers of the pool; returns when all are done. May be called
// from any number of threads, also with the same share: no caller waits for the job of another.
void mrs_pool_for(mrs_pool *pool, mrs_chunk_fn fn, void *context, int64_t chunks);
int mrs_pool_size(const mrs_pool *pool);
// Whether the workers are far from the callers of their last jobs: the time that these took to reach them tells that the cores share
// no cache. A core then takes long to write a line that another one holds.
bool mrs_pool_is_far(const mrs_pool *pool);

// Chunks of a job that one thread claims, in ascending order, before it claims others.
struct mrs_part {
  int64_t begin, end;
};
constexpr int kMostParts = 32;  // threads beyond them share parts

static inline int64_t mrs_parts(int64_t chunks, int64_t threads) {
  const int64_t most = threads < kMostParts ? threads : kMostParts;
  return chunks < most ? chunks : most;
}
static inline mrs_part mrs_part_at(int64_t chunks, int64_t parts, int64_t index) {
  return {index * chunks / parts, (index + 1) * chunks / parts};
}
// The part that a chunk belongs to.
static inline mrs_part mrs_part_of(const mrs_pool *pool, int64_t chunks, int64_t chunk) {
  const int64_t parts = mrs_parts(chunks, mrs_pool_size(pool));
  return mrs_part_at(chunks, parts, ((chunk + 1) * parts - 1) / chunks);
}

extern "C" {
// A share of `threads` threads; the pool grows to the largest share. Null when the system starts no more threads.
mrs_pool *mrs_pool_acquire(int threads);
// Releases a share; the pool shrinks to the largest remaining share, and to no workers after the last.
void mrs_pool_release(mrs_pool *pool);
// The number of the pool's workers.
int mrs_pool_workers();
// For tests: whether workers are far, whatever was measured.
enum mrs_distance { MRS_DISTANCE_MEASURED, MRS_DISTANCE_NEAR, MRS_DISTANCE_FAR };
void mrs_pool_assume(mrs_distance distance);
}

template <class Body>
inline void parallel_for(mrs_pool *pool, int64_t chunks, Body &&body) {
  if (chunks == 1) {
    body(int64_t(0));
    return;
  }
  mrs_pool_for(pool, [](void *context, int64_t chunk) { (*static_cast<Body *>(context))(chunk); }, &body, chunks);
}
