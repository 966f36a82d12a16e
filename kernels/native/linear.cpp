// Matrix products x @ w^T in float32 over weights packed into panels.
//
// The two vectors of weights that belong to one input lie together: a panel is [in][PANEL]
// float32, or [in][LANES] pairs of bfloat16, the low half of pair i output i and the high half
// output i + LANES. A bfloat16 becomes a float32 by one shift or mask, exactly, and halves what has
// to be read: at few rows memory sets the pace.

#include "panels.h"

namespace {

// Neighbouring panels, as the vectors that belong to one input.
struct Float32Panels {
  const float* first;
  int64_t depth;

  Float32Panels(const Matrix& m, int64_t panel)
      : first((const float*)m.panels + panel * m.num_inputs * PANEL), depth(m.num_inputs) {}

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int j = 0; j < VECTORS; j++)
      vectors[j] = ::load(first + (j / 2 * depth + k) * PANEL + j % 2 * LANES);
  }
};

struct BFloat16Panels {
  const uint32_t* first;
  int64_t depth;

  BFloat16Panels(const Matrix& m, int64_t panel)
      : first((const uint32_t*)m.panels + panel * m.num_inputs * LANES), depth(m.num_inputs) {}

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int j = 0; j < VECTORS; j += 2) {
      const uint32_t* place = first + (j / 2 * depth + k) * LANES;
      const Bits pairs = load_bits(place);
      // The next panel: while several tiles share this one, memory would rest.
      if (VECTORS == 2) prefetch(place + depth * LANES);
      vectors[j] = (Floats)(pairs << 16);
      vectors[j + 1] = (Floats)(pairs & 0xffff0000u);
    }
  }
};

template <class Panels>
struct FloatProduct : Product {
  const float* x;  // [num_rows][num_inputs]

  template <int ROWS, int VECTORS>
  void multiply(int64_t row, int64_t panel) const {
    Floats sums[ROWS][VECTORS];
    for (int j = 0; j < VECTORS; j++) {
      const Floats first = bias ? load(bias + panel * PANEL + j * LANES) : Floats{};
      for (int i = 0; i < ROWS; i++) sums[i][j] = first;
    }
    ::multiply(x + row * num_inputs, num_inputs, num_inputs, Panels(*this, panel), sums);
    for (int i = 0; i < ROWS; i++) {
      Floats own[VECTORS];  // a copy, or the sums would have to be in memory all the time
      for (int j = 0; j < VECTORS; j++) own[j] = sums[i][j];
      finish(*this, own, row + i, panel);
    }
  }
};

}  // namespace

extern "C" int64_t num_lanes() { return LANES; }

// To be raised with every change of a function's arguments; kernels/native_library.py checks it.
extern "C" int64_t interface_version() { return 3; }

extern "C" void linear(const float* x, const Matrix* matrix, float* y, int64_t num_rows) {
  const Product p{*matrix, y, num_rows};
  const int64_t row_bytes = p.num_inputs * sizeof(float);
  if (p.element == INT8)
    multiply_quantized(x, p);
  else if (p.element == BFLOAT16)
    multiply_all(FloatProduct<BFloat16Panels>{p, x}, row_bytes);
  else
    multiply_all(FloatProduct<Float32Panels>{p, x}, row_bytes);
}
