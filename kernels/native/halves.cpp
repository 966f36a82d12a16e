// The two halves of a decoder layer, each a chain of the operations, called at once.
//
// From Python each operation costs some ten microseconds, for a single row often more than what it
// computes, and the helper threads may fall asleep in between.

#include <cstring>

#include "operations.h"
#include "scratch.h"

static thread_local Scratch scratch;

extern "C" void self_attention(const SelfAttention* weights, const Step* step, const float* x,
                               float* residual, const float* rotation, float* kv_cache,
                               const int64_t* rows, int64_t num_rows, float* y) {
  const int64_t width = weights->qkv.num_inputs, query_width = step->query_width();
  const int64_t num_tokens = step->num_tokens, column_bytes = num_tokens * sizeof(float);
  const int64_t normed_bytes = column_bytes * width, attended_bytes = column_bytes * query_width;
  const int64_t heads_bytes = column_bytes * step->heads_width();
  scratch.open(normed_bytes, heads_bytes, attended_bytes);
  float* normed = (float*)scratch.take(normed_bytes);
  float* heads = (float*)scratch.take(heads_bytes);
  float* attended = (float*)scratch.take(attended_bytes);
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
  const int64_t column_bytes = num_rows * sizeof(float);
  scratch.open(column_bytes * width, column_bytes * weights->down.num_inputs);
  float* normed = (float*)scratch.take(column_bytes * width);
  float* activated = (float*)scratch.take(column_bytes * weights->down.num_inputs);
  add_rms_norm(x, residual, &weights->norm, normed, num_rows, width);
  linear(normed, &weights->gate_up, activated, num_rows);
  linear(activated, &weights->down, y, num_rows);
}
