// Matrix products of int8 weights with inputs that are quantized on the way, row by row.
//
// An output's weights are whole multiples -127..127 of a scale of its own, and so is each group of
// GROUP inputs of a row: a few inputs may be a hundred times larger than the others, and with one
// scale for the whole row they would round those away. Within a group products and sums are exact.
// Two inputs are multiplied and added at once, as int16: the instructions that take bytes stop at
// 32767. However many rows there are, a row's result is the same sum of the same groups.
//
// A panel is [in / 2][PANEL][2] int8: for two neighbouring inputs each output's two weights.

#include <immintrin.h>

#include "panels.h"
#include "scratch.h"

namespace {

typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));
typedef int16_t HalfShorts __attribute__((vector_size(LANES * 2)));

constexpr int64_t GROUP = 32;
constexpr float LARGEST = 127.0f;
constexpr float TINIEST = 1e-30f;  // groups below are zeros: the reciprocal would overflow

// The compiler's own vectors have no such operations, or turn them into several instructions.
#if defined(__AVX512BW__)

Shorts load_bytes(const int8_t* p) {
  return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}

// The sum over each pair of lanes, a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1].
Ints multiply_pairs(Shorts a, Shorts b) { return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }

#else

constexpr int PARTS = sizeof(Shorts) / sizeof(__m256i);

Shorts load_bytes(const int8_t* p) {
  __m256i parts[PARTS];
  for (int i = 0; i < PARTS; i++)
    parts[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p + i));
  Shorts v;
  std::memcpy(&v, parts, sizeof v);
  return v;
}

Ints multiply_pairs(Shorts a, Shorts b) {
  __m256i left[PARTS], right[PARTS], sums[PARTS];
  std::memcpy(left, &a, sizeof a);
  std::memcpy(right, &b, sizeof b);
  for (int i = 0; i < PARTS; i++) sums[i] = _mm256_madd_epi16(left[i], right[i]);
  Ints v;
  std::memcpy(&v, sums, sizeof v);
  return v;
}

#endif

struct QuantizedProduct : Product {
  const int32_t* pairs;       // [num_rows][num_pairs] of two int16
  const float* group_scales;  // [num_rows][num_groups]
  int64_t num_pairs, num_groups;

  template <int ROWS, int VECTORS>
  void multiply(int64_t row, int64_t panel) const {
    Floats totals[ROWS][VECTORS] = {};
    for (int64_t group = 0; group < num_groups; group++) {
      Ints sums[ROWS][VECTORS] = {};
      add_group(row, panel, group, sums);
      for (int i = 0; i < ROWS; i++) {
        const float scale = group_scales[(row + i) * num_groups + group];
        for (int j = 0; j < VECTORS; j++)
          totals[i][j] += __builtin_convertvector(sums[i][j], Floats) * scale;
      }
    }
    for (int i = 0; i < ROWS; i++) {
      Floats own[VECTORS];
      for (int j = 0; j < VECTORS; j++) {
        const int64_t column = panel * PANEL + j * LANES;
        own[j] = totals[i][j] * load(scales + column);
        if (bias) own[j] += load(bias + column);
      }
      finish(*this, own, row + i, panel);
    }
  }

  template <int ROWS, int VECTORS>
  void add_group(int64_t row, int64_t panel, int64_t group, Ints (&sums)[ROWS][VECTORS]) const {
    const int32_t* inputs = pairs + row * num_pairs;
    const int8_t* weights = (const int8_t*)panels + panel * num_pairs * 2 * PANEL;
    const int64_t first = group * GROUP / 2, last = first + GROUP / 2;
    const int64_t end = last < num_pairs ? last : num_pairs;
    for (int64_t k = first; k < end; k++) {
      Shorts operand[VECTORS];
      for (int j = 0; j < VECTORS; j++)
        operand[j] = load_bytes(weights + ((j / 2 * num_pairs + k) * 2 + j % 2) * PANEL);
      for (int i = 0; i < ROWS; i++) {
        const Shorts input = (Shorts)(inputs[i * num_pairs + k] - Ints{});
        for (int j = 0; j < VECTORS; j++) sums[i][j] += multiply_pairs(operand[j], input);
      }
    }
  }
};

// Up to LANES floats; zeros where there are fewer.
Floats load_some(const float* p, int64_t num_left) {
  if (num_left >= LANES) return load(p);
  Floats v{};
  std::memcpy(&v, p, num_left * sizeof(float));
  return v;
}

// Writes a group as int16, zeros up to a whole vector; returns its scale.
float quantize(const float* x, int64_t width, int16_t* y) {
  Floats highest{}, spoilt{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Floats v = load_some(x + i, width - i);
    highest = larger(highest, larger(v, -v));
    spoilt += v - v;  // 0, but not a number where v is none or infinite
  }
  const float top = largest(highest);
  const float factor = top > TINIEST ? LARGEST / top : 0;
  const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  for (int64_t i = 0; i < width; i += LANES) {
    const Floats rounded = (load_some(x + i, width - i) * factor + shift) - shift;
    const HalfShorts shorts =
        __builtin_convertvector(__builtin_convertvector(rounded, Ints), HalfShorts);
    std::memcpy(y + i, &shorts, sizeof shorts);
  }
  return top / LARGEST + sum(spoilt);
}

thread_local Scratch scratch;

}  // namespace

void multiply_quantized(const float* x, const Product& p) {
  const int64_t width = (p.num_inputs + LANES - 1) / LANES * LANES;  // even
  const int64_t num_groups = (width + GROUP - 1) / GROUP, row_bytes = width * sizeof(int16_t);
  scratch.open(p.num_rows * row_bytes, p.num_rows * num_groups * sizeof(float));
  int16_t* rows = (int16_t*)scratch.take(p.num_rows * row_bytes);
  float* group_scales = (float*)scratch.take(p.num_rows * num_groups * sizeof(float));
  share_rows(p.num_rows, width, [&](int64_t row) {
    for (int64_t group = 0; group < num_groups; group++) {
      const int64_t first = group * GROUP, left = p.num_inputs - first;
      group_scales[row * num_groups + group] = quantize(
          x + row * p.num_inputs + first, left < GROUP ? left : GROUP, rows + row * width + first);
    }
  });
  multiply_all(QuantizedProduct{p, (const int32_t*)rows, group_scales, width / 2, num_groups},
               row_bytes);
}
