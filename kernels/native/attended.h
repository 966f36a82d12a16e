// What attention reads: the heads of a step, and the keys and values of the cache as vectors.
//
// Keys lie transposed within their block, [head_dim][block_size], so that the scores of LANES keys
// are a product with vectors as they come.

#pragma once

#include "operations.h"
#include "vector.h"

// One layer's attention in a step.
struct Call : Step {
  const float* heads;   // [num_tokens][num_kv_heads][group_size queries, key, value][head_dim]
  const float* keys;    // [blocks][num_kv_heads][head_dim][block_size]
  const float* values;  // [blocks][num_kv_heads][block_size][head_dim]
  float* output;        // [num_tokens][num_kv_heads][group_size][head_dim]
  int64_t window;
};

constexpr int VECTORS_IN_LINE = LANES < 16 ? 16 / LANES : 1;  // of the cache

// `VECTORS` times LANES keys, as vectors over the keys for each k < head_dim; on the way those
// that follow are fetched. Blocks lie anywhere, so the processor cannot foresee them.
struct Keys {
  const float *first[8], *next[8];
  int64_t stride;

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int v = 0; v < VECTORS; v++) vectors[v] = ::load(first[v] + k * stride);
    for (int v = 0; v < VECTORS; v += VECTORS_IN_LINE) prefetch(next[v] + k * stride);
  }
};

// The same of values, for each key k.
struct Values {
  const float *first, *next;
  int64_t stride;

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int v = 0; v < VECTORS; v++) vectors[v] = ::load(first + k * stride + v * LANES);
    for (int v = 0; v < VECTORS; v += VECTORS_IN_LINE) prefetch(next + k * stride + v * LANES);
  }
};
