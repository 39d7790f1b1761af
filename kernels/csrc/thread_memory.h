// Memory that a thread keeps from step to step.
#pragma once
#include "isa.h"

#include <cstdint>
#include <new>

namespace MRS_ISA {

class ThreadMemory {
  static constexpr std::align_val_t kLine{64};
  uint8_t *data = nullptr;
  int64_t size = 0;

 public:
  ~ThreadMemory() { ::operator delete(data, kLine); }

  // At least so many bytes, whose content is undefined.
  uint8_t *get(int64_t bytes) {
    if (bytes > size) {
      ::operator delete(data, kLine);
      data = nullptr, size = 0;
      data = (uint8_t *)::operator new(bytes, kLine);
      size = bytes;
    }
    return data;
  }
};

}  // namespace MRS_ISA
