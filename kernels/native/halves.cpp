// The two halves of a decoder layer, each a chain of the operations, called at once.
//
// From Python each operation costs some ten microseconds, for a single row often more than what it
// computes, and the helper threads may fall asleep in between.

#include <cstdlib>
#include <cstring>

#include "operations.h"

namespace {

constexpr int64_t CACHE_LINE = 16;  // floats

// Memory that stays from call to call: writing to fresh pages costs several times the write.
class Scratch {
 public:
  ~Scratch() { std::free(memory); }

  // Opens it for so many floats in all; what was taken before is gone.
  void open(int64_t size) {
    if (size > capacity) {
      std::free(memory);
      capacity = size;
      memory = (float*)std::aligned_alloc(CACHE_LINE * sizeof(float), size * sizeof(float));
    }
    used = 0;
  }

  float* take(int64_t size) {
    float* taken = memory + used;
    used += padded(size);
    return taken;
  }

  static int64_t padded(int64_t size) { return (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

 private:
  float* memory = nullptr;
  int64_t capacity = 0, used = 0;
};

thread_local Scratch scratch;

}  // namespace

extern "C" void self_attention(const SelfAttention* weights, const Step* step, const float* x,
                               float* residual, const float* rotation, float* kv_cache,
                               const int64_t* rows, int64_t num_rows, float* y) {
  const int64_t width = weights->qkv.num_inputs, query_width = step->query_width();
  const int64_t num_tokens = step->num_tokens;
  const int64_t normed_size = num_tokens * width, heads_size = num_tokens * step->heads_width();
  const int64_t attended_size = num_tokens * query_width;
  scratch.open(Scratch::padded(normed_size) + Scratch::padded(heads_size) +
               Scratch::padded(attended_size));
  float* normed = scratch.take(normed_size);
  float* heads = scratch.take(heads_size);
  float* attended = scratch.take(attended_size);
  add_rms_norm(x, residual, &weights->norm, normed, num_tokens, width);
  linear(normed, &weights->qkv, heads, num_tokens);
  rotate_and_store(heads, &weights->qk_norm, rotation, kv_cache, step);
  if (num_rows == 0) return;
  paged_attention(heads, kv_cache, step, weights->window, attended);
  if (rows) {
    // The heads have done their service, and are wider.
    for (int64_t i = 0; i < num_rows; i++)
      std::memcpy(heads + i * query_width, attended + rows[i] * query_width,
                  query_width * sizeof(float));
    attended = heads;
  }
  linear(attended, &weights->output, y, num_rows);
}

extern "C" void feed_forward(const FeedForward* weights, const float* x, float* residual, float* y,
                             int64_t num_rows) {
  const int64_t width = weights->gate_up.num_inputs;
  const int64_t normed_size = num_rows * width;
  const int64_t activated_size = num_rows * weights->down.num_inputs;
  scratch.open(Scratch::padded(normed_size) + Scratch::padded(activated_size));
  float* normed = scratch.take(normed_size);
  float* activated = scratch.take(activated_size);
  add_rms_norm(x, residual, &weights->norm, normed, num_rows, width);
  linear(normed, &weights->gate_up, activated, num_rows);
  linear(activated, &weights->down, y, num_rows);
}
