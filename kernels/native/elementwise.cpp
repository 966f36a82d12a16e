// Norms, activation and rotation, each in one pass over its rows.

#include <cmath>

#include "operations.h"
#include "threads.h"
#include "vector.h"

namespace {

// 1 / sqrt(mean(x^2) + eps) of `width` elements.
float inverse_rms(const float* x, int64_t width, float eps) {
  Floats squares{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Floats v = load(x + i);
    squares += v * v;
  }
  return 1.0f / std::sqrt(sum(squares) / width + eps);
}

// Multiplies pairs (0, 1), (2, 3), ... of a head, as complex numbers, by the token's rotation.
void rotate(float* head, const float* rotation, int64_t head_dim) {
  Ints swapped, evens, odds;
  Floats sign;
  for (int i = 0; i < LANES; i++) {
    swapped[i] = i ^ 1;
    evens[i] = i & ~1;
    odds[i] = i | 1;
    sign[i] = i & 1 ? 1.0f : -1.0f;
  }
  for (int64_t i = 0; i < head_dim; i += LANES) {
    const Floats v = load(head + i), r = load(rotation + i);
    store(head + i, v * __builtin_shuffle(r, evens) +
                        __builtin_shuffle(v, swapped) * (__builtin_shuffle(r, odds) * sign));
  }
}

}  // namespace

extern "C" void add_rms_norm(const float* x, float* residual, const Norm* norm, float* y,
                             int64_t num_rows, int64_t width) {
  share_rows(num_rows, width, [&](int64_t row) {
    float* r = residual + row * width;
    if (x)
      for (int64_t i = 0; i < width; i += LANES)
        store(r + i, load(r + i) + load(x + row * width + i));
    const float scale = inverse_rms(r, width, norm->eps);
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, load(r + i) * scale * load(norm->gain + i));
  });
}

extern "C" void silu_and_mul(const float* x, float* y, int64_t num_rows, int64_t width) {
  share_rows(num_rows, width, [&](int64_t row) {
    const float* gate = x + row * 2 * width;
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, silu(load(gate + i)) * load(gate + width + i));
  });
}

extern "C" void rotate_and_store(float* heads, const Norm* norm, const float* rotation,
                                 float* kv_cache, const Step* step) {
  const int64_t head_dim = step->head_dim, group_size = step->group_size;
  const int64_t block_size = step->block_size, num_kv_heads = step->num_kv_heads;
  const float* gain = norm->gain;
  float* keys = kv_cache;
  float* values = kv_cache + step->cache_size();
  share_rows(step->num_tokens, step->heads_width(), [&](int64_t token) {
    const int64_t slot = step->slots[token];
    const int64_t block = slot / block_size, offset = slot % block_size;
    float* head = heads + token * step->heads_width();
    for (int64_t h = 0; h < num_kv_heads; h++, head += head_dim) {
      for (int64_t i = 0; i <= group_size; i++, head += head_dim) {
        if (gain) {
          const float scale = inverse_rms(head, head_dim, norm->eps);
          for (int64_t j = 0; j < head_dim; j += LANES)
            store(head + j, load(head + j) * scale * load(gain + i * head_dim + j));
        }
        rotate(head, rotation + token * head_dim, head_dim);
      }
      const int64_t first = (block * num_kv_heads + h) * block_size * head_dim;
      for (int64_t i = 0; i < head_dim; i++)
        keys[first + i * block_size + offset] = head[i - head_dim];
      std::memcpy(values + first + offset * head_dim, head, head_dim * sizeof(float));
    }
  });
}
