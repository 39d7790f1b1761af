// How far a worker of the pool is from the callers of its jobs.
#pragma once
#include <algorithm>
#include <chrono>

class Distance {
 public:
  // Jobs of which the one that reached the worker first tells: others found it at work, or asleep.
  static constexpr int kMeasured = 16;
  // A job reaches a worker whose core shares a cache with the caller's in 85 to 160 ns, and another in 270 to 430 (docs/log.md).
  static constexpr std::chrono::nanoseconds kFar{220};

  // Adds the time that a job took to reach the worker. Returns whether is_far() changed.
  bool add(std::chrono::nanoseconds time) {
    least_ = std::min(least_, time);
    if (++jobs_ < kMeasured) return false;
    const bool before = is_far_;
    is_far_ = least_ > kFar;
    least_ = std::chrono::nanoseconds::max(), jobs_ = 0;
    return is_far_ != before;
  }
  bool is_far() const { return is_far_; }

 private:
  std::chrono::nanoseconds least_ = std::chrono::nanoseconds::max();
  int jobs_ = 0;
  bool is_far_ = false;
};
