// A pool of threads that waits for nobody who has not started.
#pragma once
#include <cstdint>

struct mrs_pool;
typedef void (*mrs_chunk_fn)(void *context, int64_t chunk);

// Runs fn(context, 0 .. chunks - 1) on the caller and the pool's workers; returns when all are done.
void mrs_pool_for(mrs_pool *pool, mrs_chunk_fn fn, void *context, int64_t chunks);
int mrs_pool_size(const mrs_pool *pool);

template <class Body>
inline void parallel_for(mrs_pool *pool, int64_t chunks, Body &&body) {
  if (chunks == 1) {
    body(int64_t(0));
    return;
  }
  mrs_pool_for(pool, [](void *context, int64_t chunk) { (*static_cast<Body *>(context))(chunk); }, &body, chunks);
}
