// Memory that stays from call to call: writing to fresh pages costs several times the write.

#pragma once

#include <cstdint>
#include <cstdlib>

class Scratch {
 public:
  ~Scratch() { std::free(memory); }

  // Makes room for pieces of these sizes; what was taken before is gone.
  template <class... Sizes>
  void open(Sizes... num_bytes) {
    const int64_t wanted = (padded(num_bytes) + ...);
    if (wanted > capacity) {
      std::free(memory);
      capacity = wanted;
      memory = (char*)std::aligned_alloc(CACHE_LINE, wanted);
    }
    used = 0;
  }

  void* take(int64_t num_bytes) {
    void* taken = memory + used;
    used += padded(num_bytes);
    return taken;
  }

 private:
  static constexpr int64_t CACHE_LINE = 64;

  static int64_t padded(int64_t num_bytes) {
    return (num_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  }

  char* memory = nullptr;
  int64_t capacity = 0, used = 0;
};
