// Matrix products x @ w^T in float32 over weights packed into panels.
//
// A panel holds PANEL = 2 * LANES output features, so that the two vectors of weights that belong
// to one input lie together: [in][PANEL] float32, or [in][LANES] pairs of bfloat16, the low half
// of pair i feature i and the high half feature i + LANES. A bfloat16 becomes a float32 by one
// shift or mask, exactly, and halves what has to be read: at few rows memory sets the pace.

#include "operations.h"
#include "product.h"
#include "threads.h"

namespace {

constexpr int PANEL = 2 * LANES;
constexpr int64_t ROW_BLOCK_BYTES = 192 << 10;  // rows of x that stay in a core's L2 cache
constexpr int PANELS_AT_ONCE = 4;               // handed to a thread

struct Product : Matrix {
  const float* x;  // [num_rows][num_inputs]
  float* y;        // [num_rows][num_outputs]
  int64_t num_rows;

  int64_t num_panels() const {
    const int64_t width = is_gated ? LANES : PANEL;
    return (num_outputs + width - 1) / width;
  }
};

// Neighbouring panels, as the vectors that belong to one input.
struct Float32Panels {
  const float* first;
  int64_t depth;

  Float32Panels(const Product& p, int64_t panel)
      : first((const float*)p.panels + panel * p.num_inputs * PANEL), depth(p.num_inputs) {}

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int j = 0; j < VECTORS; j++)
      vectors[j] = ::load(first + (j / 2 * depth + k) * PANEL + j % 2 * LANES);
  }
};

struct BFloat16Panels {
  const uint32_t* first;
  int64_t depth;

  BFloat16Panels(const Product& p, int64_t panel)
      : first((const uint32_t*)p.panels + panel * p.num_inputs * LANES), depth(p.num_inputs) {}

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int j = 0; j < VECTORS; j += 2) {
      const Bits pairs = load_bits(first + (j / 2 * depth + k) * LANES);
      vectors[j] = (Floats)(pairs << 16);
      vectors[j + 1] = (Floats)(pairs & 0xffff0000u);
    }
  }
};

// Writes what neighbouring panels, from `panel` on, have for a row.
template <int VECTORS>
void finish(const Product& p, Floats (&sums)[VECTORS], int64_t row, int64_t panel) {
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

template <class Panels, int ROWS, int VECTORS>
void multiply_tile(const Product& p, int64_t row, int64_t panel) {
  Floats sums[ROWS][VECTORS];
  for (int j = 0; j < VECTORS; j++) {
    const Floats bias = p.bias ? load(p.bias + panel * PANEL + j * LANES) : Floats{};
    for (int i = 0; i < ROWS; i++) sums[i][j] = bias;
  }
  const float* x = p.x + row * p.num_inputs;
  multiply(x, p.num_inputs, p.num_inputs, Panels(p, panel), sums);
  for (int i = 0; i < ROWS; i++) {
    Floats own[VECTORS];  // a copy, or the sums would have to be in memory all the time
    for (int j = 0; j < VECTORS; j++) own[j] = sums[i][j];
    finish(p, own, row + i, panel);
  }
}

// Panels panel..last_panel for `ROWS` rows.
template <class Panels>
struct Rows {
  const Product& p;
  int64_t row, panel, last_panel;

  template <int ROWS>
  void run() const {
    constexpr int VECTORS = vectors_beside(ROWS), AT_ONCE = VECTORS / 2;
    int64_t i = panel;
    for (; i + AT_ONCE <= last_panel; i += AT_ONCE) multiply_tile<Panels, ROWS, VECTORS>(p, row, i);
    for (; i < last_panel; i++) multiply_tile<Panels, ROWS, 2>(p, row, i);
  }
};

// Panels panel..last_panel for the rows first_row..last_row, in tiles of about equal height.
template <class Panels>
void multiply_block(const Product& p, int64_t first_row, int64_t last_row, int64_t panel,
                    int64_t last_panel) {
  const int64_t num_rows = last_row - first_row;
  const int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
  const int64_t at_once = num_tiles == 1 ? last_panel - panel : 1;
  for (; panel < last_panel; panel += at_once)
    for (int64_t t = 0; t < num_tiles; t++) {
      const int64_t low = first_row + num_rows * t / num_tiles;
      const int64_t high = first_row + num_rows * (t + 1) / num_tiles;
      with_rows(high - low, Rows<Panels>{p, low, panel, panel + at_once});
    }
}

template <class Panels>
void multiply_all(const Product& p) {
  const int64_t num_panels = p.num_panels();
  const int64_t num_chunks = (num_panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
  int64_t block = ROW_BLOCK_BYTES / (p.num_inputs * sizeof(float)) / MAX_ROWS * MAX_ROWS;
  if (block < MAX_ROWS) block = MAX_ROWS;
  const int64_t num_blocks = (p.num_rows + block - 1) / block;
  share_out(num_blocks * num_chunks, [&](int64_t item) {
    const int64_t i = item / num_chunks, chunk = item % num_chunks;
    const int64_t last = (chunk + 1) * PANELS_AT_ONCE;
    multiply_block<Panels>(p, p.num_rows * i / num_blocks, p.num_rows * (i + 1) / num_blocks,
                           chunk * PANELS_AT_ONCE, last < num_panels ? last : num_panels);
  });
}

}  // namespace

extern "C" int64_t num_lanes() { return LANES; }

// To be raised with every change of a function's arguments; kernels/native_library.py checks it.
extern "C" int64_t interface_version() { return 2; }

extern "C" void linear(const float* x, const Matrix* matrix, float* y, int64_t num_rows) {
  const Product p{*matrix, x, y, num_rows};
  if (p.element == BFLOAT16)
    multiply_all<BFloat16Panels>(p);
  else
    multiply_all<Float32Panels>(p);
}
