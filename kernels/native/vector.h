// Vectors of the widest registers at hand, written once for all of them.
//
// The compiler's own vector types turn into AVX2 or AVX512 by the flags of the build alone.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

static inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline Bits load_bits(const uint32_t* p) {
  Bits v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

static inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

static inline Floats broadcast(float x) { return x - Floats{}; }

static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

static inline Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < LANES; i++) lanes[i] = i;
  return lanes;
}

static inline float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

static inline float largest(Floats v) {
  float best = v[0];
  for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x for x <= 88, to about two units in the last place; 0 below -87, so also for -infinity.
//
// 2^n times a polynomial over [-ln 2 / 2, ln 2 / 2]; its coefficients are those of expf in the
// Cephes library (S. Moshier, netlib.org/cephes).
static inline Floats exponential(Floats x) {
  const Floats lowest = broadcast(-87.0f);
  const Ints is_lower = x < lowest;
  x = larger(x, lowest);
  const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Floats n = (x * 1.44269504f + shift) - shift;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = __builtin_convertvector(n, Ints) << 23;
  return (Floats)(((Ints)p + exponent) & ~is_lower);
}

static inline Floats silu(Floats x) {
  return x * (1.0f / (1.0f + exponential(-larger(x, broadcast(-87.0f)))));
}
