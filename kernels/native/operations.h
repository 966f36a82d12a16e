// What the library offers to Python, and the structs it is told in; kernels/native_structs.py has
// the same ones.

#pragma once

#include <cstdint>

// What a panel of a matrix is made of; linear.cpp tells how it lies.
enum Element : int64_t { FLOAT32, BFLOAT16, INT8 };

// A matrix packed into panels. Where it is gated, the outputs of a panel's low half are gates and
// those of its high half go with them: together they give silu(gate) * other.
struct Matrix {
  const void* panels;
  const float* bias;    // [padded outputs, in the panels' order], or null
  const float* scales;  // the same, of int8; else null
  int64_t num_inputs, num_outputs;
  Element element;
  int64_t is_gated;
};

// An RMS norm; without a gain there is none.
struct Norm {
  const float* gain;
  double eps;
};

// Where the tokens of a step belong, and the cache that holds their sequences.
struct Step {
  const int32_t* query_start_loc;  // [num_seqs + 1]
  const int32_t* seq_lens;         // [num_seqs]
  const int32_t* block_tables;     // [num_seqs][max_blocks]
  const int32_t* slots;            // [num_tokens]
  int64_t num_tokens, num_seqs, max_blocks;
  int64_t num_blocks, num_kv_heads, group_size, head_dim, block_size;
  double scale;

  int64_t heads_width() const { return num_kv_heads * (group_size + 2) * head_dim; }
  int64_t query_width() const { return num_kv_heads * group_size * head_dim; }
  int64_t cache_size() const { return num_blocks * num_kv_heads * block_size * head_dim; }
};

struct SelfAttention {
  Norm norm;
  Matrix qkv;
  Norm qk_norm;
  Matrix output;
  int64_t window;  // positions seen; 0: all
};

struct FeedForward {
  Norm norm;
  Matrix gate_up, down;
};

extern "C" {

// y = x @ matrix^T + bias, activated where the matrix is gated: [num_rows][num_outputs].
void linear(const float* x, const Matrix* matrix, float* y, int64_t num_rows);

// residual += x (unless x is null); y = residual / rms(residual) * gain, rows of `width`.
void add_rms_norm(const float* x, float* residual, const Norm* norm, float* y, int64_t num_rows,
                  int64_t width);

// y = silu(left half of x) * right half; y has rows of `width`, x of twice as much.
void silu_and_mul(const float* x, float* y, int64_t num_rows, int64_t width);

// Norms and rotates queries and keys in place, then stores keys and values in `kv_cache`, which
// holds the keys of all blocks, then their values.
//
// heads [num_tokens][num_kv_heads][group_size queries, key, value][head_dim], gain
// [group_size + 1][head_dim], rotation [num_tokens][head_dim / 2] complex.
void rotate_and_store(float* heads, const Norm* norm, const float* rotation, float* kv_cache,
                      const Step* step);

// Attends the queries among such heads over their sequences: [num_tokens][query_width].
void paged_attention(const float* heads, const float* kv_cache, const Step* step, int64_t window,
                     float* output);

// residual += x (unless x is null), then norm, projection, rotation, attention and the output's
// projection: y [num_rows][width]. Of the tokens only `rows`, unless null, get beyond attention.
void self_attention(const SelfAttention* weights, const Step* step, const float* x,
                    float* residual, const float* rotation, float* kv_cache, const int64_t* rows,
                    int64_t num_rows, float* y);

// residual += x, then norm, gate and up, activation, down: y [num_rows][width].
void feed_forward(const FeedForward* weights, const float* x, float* residual, float* y,
                  int64_t num_rows);
}
