// What products over weights in panels have in common: how they are shared out, and what becomes
// of their sums.
//
// A panel holds PANEL = 2 * LANES outputs, the low and the high half, one vector of each.

#pragma once

#include "operations.h"
#include "product.h"
#include "threads.h"

constexpr int PANEL = 2 * LANES;
constexpr int64_t ROW_BLOCK_BYTES = 192 << 10;  // rows of x that stay in a core's L2 cache

struct Product : Matrix {
  float* y;  // [num_rows][num_outputs]
  int64_t num_rows;

  // Panels handed to a thread at once: as many as the widest tile takes, or else few, so that two
  // threads do not end up with nine items of work.
  int64_t panels_at_once() const { return num_rows <= MAX_ROWS ? 4 : 2; }

  int64_t num_panels() const {
    const int64_t width = is_gated ? LANES : PANEL;
    return (num_outputs + width - 1) / width;
  }
};

// Writes what neighbouring panels, from `panel` on, have for a row.
template <int VECTORS>
static inline void finish(const Product& p, Floats (&sums)[VECTORS], int64_t row, int64_t panel) {
  int num_vectors = VECTORS;
  if (p.is_gated) {
    num_vectors = VECTORS / 2;
    for (int j = 0; j < num_vectors; j++) sums[j] = silu(sums[2 * j]) * sums[2 * j + 1];
  }
  const int64_t column = panel * PANEL * num_vectors / VECTORS;
  const int64_t num_left = p.num_outputs - column;
  float* y = p.y + row * p.num_outputs + column;
  if (num_left < num_vectors * LANES)
    std::memcpy(y, sums, num_left * sizeof(float));
  else
    for (int j = 0; j < num_vectors; j++) store(y + j * LANES, sums[j]);
}

// Panels panel..last_panel for `ROWS` rows. `Kind` is a product that has a member
// multiply<ROWS, VECTORS>(row, panel): a tile of so many rows and vectors, and of half as many
// panels.
template <class Kind>
struct PanelRows {
  const Kind& p;
  int64_t row, panel, last_panel;

  template <int ROWS>
  void run() const {
    constexpr int VECTORS = vectors_beside(ROWS), AT_ONCE = VECTORS / 2;
    int64_t i = panel;
    for (; i + AT_ONCE <= last_panel; i += AT_ONCE) p.template multiply<ROWS, VECTORS>(row, i);
    for (; i < last_panel; i++) p.template multiply<ROWS, 2>(row, i);
  }
};

// Panels panel..last_panel for the rows first_row..last_row, in tiles of about equal height.
template <class Kind>
static void multiply_block(const Kind& p, int64_t first_row, int64_t last_row, int64_t panel,
                           int64_t last_panel) {
  const int64_t num_rows = last_row - first_row;
  const int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
  const int64_t at_once = num_tiles == 1 ? last_panel - panel : 1;
  for (; panel < last_panel; panel += at_once)
    for (int64_t t = 0; t < num_tiles; t++) {
      const int64_t low = first_row + num_rows * t / num_tiles;
      const int64_t high = first_row + num_rows * (t + 1) / num_tiles;
      with_rows(high - low, PanelRows<Kind>{p, low, panel, panel + at_once});
    }
}

// The whole product; `row_bytes` is what a row of its input takes.
template <class Kind>
static void multiply_all(const Kind& p, int64_t row_bytes) {
  const int64_t num_panels = p.num_panels(), at_once = p.panels_at_once();
  const int64_t num_chunks = (num_panels + at_once - 1) / at_once;
  int64_t block = ROW_BLOCK_BYTES / row_bytes / MAX_ROWS * MAX_ROWS;
  if (block < MAX_ROWS) block = MAX_ROWS;
  const int64_t num_blocks = (p.num_rows + block - 1) / block;
  share_out(num_blocks * num_chunks, [&](int64_t item) {
    const int64_t i = item / num_chunks, chunk = item % num_chunks;
    const int64_t last = (chunk + 1) * at_once;
    multiply_block(p, p.num_rows * i / num_blocks, p.num_rows * (i + 1) / num_blocks,
                   chunk * at_once, last < num_panels ? last : num_panels);
  });
}

// The product of rows x [num_rows][num_inputs] with int8 weights; quantized.cpp.
void multiply_quantized(const float* x, const Product& p);
