// Packs the matrices of mapped files in threads of its own, in order, while the caller does other work, and on the caller's
// thread too once it waits. The pool is not used: its jobs end together, and would stand still whenever the caller's other
// work has the processor of one of its threads. One more thread maps the files' pages ahead of them.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "mrs.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// Bytes of a matrix that a thread packs before it looks for more.
constexpr int64_t kPiece = 1 << 20;
// Bytes that are mapped ahead of those that are packed, and bytes of one call. The disk serves one ascending stream faster
// than the faults of threads that take turns.
constexpr int64_t kMappedAhead = 32 << 20, kMapped = 4 << 20;

struct Matrix {
  mrs_weight stored;
  uint8_t *dst;
  const uint8_t *pages;
  int64_t page_bytes;
  int64_t next = 0, left = 0;  // the first panel that no thread took, and the number of those that are not packed

  int64_t panels() const { return (stored.rows + 15) / 16; }
};

struct Piece {
  Matrix *matrix;
  int64_t begin, end;
};

void name_thread(const char *name) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), name);
#endif
}

// Maps the pages of a range, which reads them from the disk where they are not in memory. A system that cannot, and one that
// refuses, as for a file that ends before the range, leaves them to the threads that pack.
void map([[maybe_unused]] const uint8_t *start, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int populate_read = 22;  // MADV_POPULATE_READ, of Linux 5.14, which older headers lack
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), first = uintptr_t(start), from = first / page * page;
  madvise(reinterpret_cast<void *>(from), first + uintptr_t(bytes) - from, populate_read);
#endif
}

// Releases the pages that lie wholly within a range. A system that refuses keeps them until it needs the memory.
void release(const uint8_t *start, int64_t bytes) {
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), first = uintptr_t(start), end = first + uintptr_t(bytes);
  const uintptr_t from = (first + page - 1) / page * page, to = end / page * page;
  if (from < to) madvise(reinterpret_cast<void *>(from), to - from, MADV_DONTNEED);
}

}  // namespace

struct mrs_packing {
  explicit mrs_packing(int threads) {
    try {
      threads_.emplace_back([this] { map_ahead(); });
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { pack(); });
    } catch (const std::exception &) {
      stop();
      throw;
    }
  }
  ~mrs_packing() { stop(); }

  void add(const Matrix &matrix) {
    const std::lock_guard<std::mutex> lock(mutex_);
    matrices_.push_back(matrix);
    matrices_.back().left = matrix.panels();
    changed_.notify_all();
  }

  int64_t wait(int64_t count, int64_t milliseconds, bool helps) {
    const auto end = Clock::now() + std::chrono::milliseconds(milliseconds);
    std::unique_lock<std::mutex> lock(mutex_);
    Piece piece;
    while (helps && Clock::now() < end && take(&piece)) finish(piece, lock);
    changed_.wait_until(lock, end, [&] { return packed_ >= count; });
    return packed_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    for (std::thread &thread : threads_) thread.join();
  }

  // Takes the next panels of the first matrix that has some; false if there are none now. The mutex is held.
  bool take(Piece *piece) {
    while (first_ < matrices_.size() && matrices_[first_].next == matrices_[first_].panels()) ++first_;
    if (first_ == matrices_.size()) return false;
    Matrix &matrix = matrices_[first_];
    const int64_t panels = std::max(int64_t(1), kPiece / (16 * matrix.stored.row_bytes));
    *piece = {&matrix, matrix.next, std::min(matrix.next + panels, matrix.panels())};
    matrix.next = piece->end;
    taken_ += (std::min<int64_t>(16 * piece->end, matrix.stored.rows) - 16 * piece->begin) * matrix.stored.row_bytes;
    return true;
  }

  // Packs panels, without the mutex meanwhile.
  void finish(const Piece &piece, std::unique_lock<std::mutex> &lock) {
    Matrix &matrix = *piece.matrix;
    lock.unlock();
    mrs_pack_panels(&matrix.stored, piece.begin, piece.end, matrix.dst);
    lock.lock();
    matrix.left -= piece.end - piece.begin;
    if (!matrix.left) {
      lock.unlock();
      if (matrix.page_bytes) release(matrix.pages, matrix.page_bytes);
      lock.lock();
      ++packed_;
    }
    changed_.notify_all();
  }

  // Maps the matrices in order, as far as they are not taken.
  void map_ahead() {
    name_thread("mistralrs-map");
    std::unique_lock<std::mutex> lock(mutex_);
    size_t matrix = 0;
    int64_t begin = 0, passed = 0;  // in the matrix, and of all matrices
    while (!stopped_) {
      if (matrix == matrices_.size() || passed > taken_ + kMappedAhead) {
        changed_.wait(lock);
        continue;
      }
      const mrs_weight &stored = matrices_[matrix].stored;
      const int64_t size = stored.rows * stored.row_bytes, bytes = std::min(size - begin, kMapped);
      const uint8_t *const start = stored.data + begin;
      begin += bytes, passed += bytes;
      if (begin == size) ++matrix, begin = 0;
      if (passed <= taken_) continue;
      lock.unlock();
      map(start, bytes);
      lock.lock();
    }
  }

  void pack() {
    name_thread("mistralrs-pack");
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopped_) {
      Piece piece;
      if (take(&piece)) finish(piece, lock);
      else changed_.wait(lock);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Matrix> matrices_;
  size_t first_ = 0;  // the first matrix that may have panels that no thread took
  int64_t packed_ = 0;
  int64_t taken_ = 0;  // bytes of all panels that threads took
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

// Starts `threads` threads that pack what mrs_packing_add gives. Null when the system starts no more threads.
EXPORT mrs_packing *mrs_packing_start(int threads) {
  try {
    return new mrs_packing(threads);
  } catch (const std::exception &) {
    return nullptr;
  }
}

// The arguments of mrs_pack, of a type and width that have a layout; all memory stays until mrs_packing_end.
// pages: bytes of the file that nothing needs after this matrix, and that are released.
EXPORT void mrs_packing_add(mrs_packing *packing, int type, const uint8_t *src, int64_t row_bytes, int64_t rows,
                            int64_t cols, const int32_t *order, uint8_t *dst, const uint8_t *pages, int64_t page_bytes) {
  packing->add({{src, nullptr, type, int32_t(rows), int32_t(cols), row_bytes, order}, dst, pages, page_bytes});
}

// Waits until `count` matrices are packed, for about so many milliseconds at most; returns their number. helps: packs too.
EXPORT int64_t mrs_packing_wait(mrs_packing *packing, int64_t count, int64_t milliseconds, int helps) {
  return packing->wait(count, milliseconds, helps);
}

// Ends it after the panels that are being packed.
EXPORT void mrs_packing_end(mrs_packing *packing) { delete packing; }
