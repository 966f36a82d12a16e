// The inner loop of every matrix product: a few rows times a few vectors, summed in registers.

#pragma once

#include "vector.h"

// Rows of the tallest tile of two vectors: what the registers hold beside the vectors themselves.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 12;
#else
constexpr int MAX_ROWS = 6;
#endif

// sums[i][v] += the sum over k of rows[i * stride + k] * vectors.load(k)[v], in the order of k.
//
// However many rows there are, an element's sum is the same chain of fused multiply-adds. So a
// row's result does not depend on the rows beside it.
template <int ROWS, int VECTORS, class Vectors>
static inline void multiply(const float* rows, int64_t stride, int64_t depth,
                            const Vectors& vectors, Floats (&sums)[ROWS][VECTORS]) {
  for (int64_t k = 0; k < depth; k++) {
    Floats operand[VECTORS];
    vectors.load(k, operand);
    for (int i = 0; i < ROWS; i++) {
      const Floats input = broadcast(rows[i * stride + k]);
      for (int v = 0; v < VECTORS; v++) sums[i][v] += input * operand[v];
    }
  }
}

// Vectors that a tile of so many rows takes at a time. Few rows need many: a core has two
// multipliers of four cycles each, so eight sums must be under way.
constexpr int vectors_beside(int rows) { return rows == 1 ? 8 : rows <= MAX_ROWS / 2 ? 4 : 2; }

// Calls action.template run<ROWS>(), 1 <= rows = ROWS <= MAX_ROWS.
template <int ROWS = MAX_ROWS, class Action>
static inline void with_rows(int64_t rows, const Action& action) {
  if (rows == ROWS) return action.template run<ROWS>();
  if constexpr (ROWS > 1) with_rows<ROWS - 1>(rows, action);
}
