// Attention of a few queries of a sequence against one KV head, tile by tile, part by part.
//
// The softmax is taken in tiles of TILE_KEYS positions, with a running maximum and sum (Milakov
// and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). What each part of PART_KEYS
// positions has summed is then merged, part by part. Tiles and parts begin at the same positions
// of a sequence whatever the step computes of it, and every sum runs in the order of the
// positions. So a query's result does not depend on the queries beside it, nor on who attended
// which part.

#pragma once

#include <cmath>
#include <cstdlib>
#include <vector>

#include "attended.h"
#include "product.h"

constexpr int64_t TILE_KEYS = 128;
constexpr int64_t PART_KEYS = 2 * TILE_KEYS;

// Queries token..last_token of one sequence against one KV head.
struct Work {
  int64_t sequence, head, token, last_token;
  int64_t first_part, last_part;  // of the sequence, of which they see something
  std::vector<float> sums;        // of each part, where threads share them
};

// What some rows have seen so far: the sum of their weighted values, the highest score and the sum
// of the weights.
struct Sums {
  float *values, *best, *total;  // [num_rows][head_dim], [num_rows], [num_rows]

  static int64_t size(int64_t num_rows, int64_t head_dim) { return num_rows * (head_dim + 2); }

  Sums(float* memory, int64_t num_rows, int64_t head_dim)
      : values(memory), best(memory + num_rows * head_dim), total(best + num_rows) {}

  void clear(int64_t num_rows, int64_t head_dim) {
    std::memset(values, 0, num_rows * head_dim * sizeof(float));
    for (int64_t row = 0; row < num_rows; row++) best[row] = -INFINITY, total[row] = 0;
  }
};

// One piece of work: its rows against the keys, tile by tile.
class Attention {
 public:
  Attention(const Call& call, Work& work)
      : s(call),
        work(work),
        blocks(call.block_tables + work.sequence * call.max_blocks),
        needs_copy(call.block_size % LANES != 0),
        num_rows((work.last_token - work.token) * call.group_size),
        first_position(call.seq_lens[work.sequence] -
                       (call.query_start_loc[work.sequence + 1] - work.token)),
        memory((float*)std::malloc(memory_size() * sizeof(float))),
        whole(memory, num_rows, s.head_dim),
        part(memory + sums_size(), num_rows, s.head_dim) {
    query = memory + 2 * sums_size();
    scores = query + num_rows * s.head_dim;
    copied_keys = scores + num_rows * TILE_KEYS;
  }
  ~Attention() { std::free(memory); }

  // All parts, one after the other.
  void run() {
    load_queries();
    whole.clear(num_rows, s.head_dim);
    for (int64_t i = work.first_part; i < work.last_part; i++) {
      attend(i);
      merge();
    }
    store_output();
  }

  // One part, left to whoever calls `merge_parts`.
  void run_part(int64_t i) {
    load_queries();
    part = shared(i);
    attend(i);
  }

  void merge_parts() {
    whole.clear(num_rows, s.head_dim);
    for (int64_t i = work.first_part; i < work.last_part; i++) {
      part = shared(i);
      merge();
    }
    store_output();
  }

 private:
  struct Rows {
    Attention& attention;
    int64_t row;

    template <int ROWS>
    void run() const {
      const int64_t seen = attention.high(row + ROWS - 1) - attention.tile;
      const int64_t num_keys = seen < attention.num_keys ? seen : attention.num_keys;
      if (num_keys <= 0 || attention.low(row) >= attention.tile + num_keys) return;
      attention.template score<ROWS>(row, num_keys);
      for (int i = 0; i < ROWS; i++) attention.soften(row + i, num_keys);
      attention.template add_values<ROWS>(row, num_keys);
    }
  };

  // Positions low..high that a row sees.
  int64_t high(int64_t row) const { return first_position + row / s.group_size + 1; }
  int64_t low(int64_t row) const {
    const int64_t below = high(row) - s.window;
    return s.window && below > 0 ? below : 0;
  }

  int64_t sums_size() const { return Sums::size(num_rows, s.head_dim); }

  int64_t memory_size() const {
    return 2 * sums_size() + num_rows * (s.head_dim + TILE_KEYS) + TILE_KEYS * s.head_dim;
  }

  Sums shared(int64_t i) const {
    float* memory = work.sums.data() + (i - work.first_part) * sums_size();
    return Sums(memory, num_rows, s.head_dim);
  }

  void attend(int64_t i) {
    part.clear(num_rows, s.head_dim);
    const int64_t first = low(0) / TILE_KEYS * TILE_KEYS, begin = i * PART_KEYS;
    const int64_t last = high(num_rows - 1);
    const int64_t end = begin + PART_KEYS < last ? begin + PART_KEYS : last;
    for (tile = first > begin ? first : begin; tile < end; tile += TILE_KEYS) {
      num_keys = end - tile < TILE_KEYS ? end - tile : TILE_KEYS;
      if (needs_copy) copy_keys();
      for (int64_t row = 0; row < num_rows; row += MAX_ROWS) {
        const int64_t left = num_rows - row;
        with_rows(left < MAX_ROWS ? left : MAX_ROWS, Rows{*this, row});
      }
    }
  }

  // Adds what `part` has to `whole`.
  void merge() {
    for (int64_t row = 0; row < num_rows; row++) {
      if (part.total[row] == 0) continue;  // saw nothing of it
      const float best = part.best[row] > whole.best[row] ? part.best[row] : whole.best[row];
      const float old_factor = exponential(broadcast(whole.best[row] - best))[0];
      const float new_factor = exponential(broadcast(part.best[row] - best))[0];
      whole.best[row] = best;
      whole.total[row] = whole.total[row] * old_factor + part.total[row] * new_factor;
      for (int64_t i = row * s.head_dim; i < (row + 1) * s.head_dim; i += LANES)
        store(whole.values + i,
              load(whole.values + i) * old_factor + load(part.values + i) * new_factor);
    }
  }

  void load_queries() {
    const float scale = s.scale;
    for (int64_t row = 0; row < num_rows; row++) {
      const int64_t head = work.head * (s.group_size + 2) + row % s.group_size;
      const float* source = s.heads + (work.token + row / s.group_size) * s.heads_width() +
                            head * s.head_dim;
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(query + row * s.head_dim + i, load(source + i) * scale);
    }
  }

  const float* block(const float* cache, int64_t position) const {
    return cache + (blocks[position / s.block_size] * s.num_kv_heads + work.head) *
                       s.block_size * s.head_dim;
  }

  // Blocks that vectors do not divide: brings the tile's keys together as [head_dim][TILE_KEYS].
  void copy_keys() {
    for (int64_t key = 0; key < num_keys; key++) {
      const float* source = block(s.keys, tile + key) + (tile + key) % s.block_size;
      for (int64_t i = 0; i < s.head_dim; i++)
        copied_keys[i * TILE_KEYS + key] = source[i * s.block_size];
    }
  }

  const float* key_vector(int64_t key) const {
    if (needs_copy) return copied_keys + key;
    return block(s.keys, tile + key) + (tile + key) % s.block_size;
  }

  const float* value_row(int64_t key) const {
    return block(s.values, tile + key) + (tile + key) % s.block_size * s.head_dim;
  }

  template <int ROWS>
  void score(int64_t row, int64_t num_keys) {
    constexpr int VECTORS = vectors_beside(ROWS);
    for (int64_t key = 0; key < num_keys; key += VECTORS * LANES) {
      Keys keys;
      keys.stride = needs_copy ? TILE_KEYS : s.block_size;
      for (int v = 0; v < VECTORS; v++) {
        const int64_t at = key + v * LANES, next = at + VECTORS * LANES;
        keys.first[v] = key_vector(at < num_keys ? at : key);  // past the end: any will do
        keys.next[v] = next < num_keys ? key_vector(next) : value_row(v * LANES % num_keys);
      }
      Floats products[ROWS][VECTORS] = {};
      multiply(query + row * s.head_dim, s.head_dim, s.head_dim, keys, products);
      for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECTORS; v++)
          store(scores + (row + i) * TILE_KEYS + key + v * LANES, products[i][v]);
    }
  }

  // Turns a row's scores into weights and brings what is summed already to the same scale.
  void soften(int64_t row, int64_t num_keys) {
    float* own = scores + row * TILE_KEYS;
    const Floats hidden = broadcast(-INFINITY);
    const int32_t first = low(row) - tile, last = high(row) - tile;
    Floats highest = hidden;
    for (int32_t i = 0; i < num_keys; i += LANES) {
      const Ints at = lane_numbers() + i;
      const Floats v = (at >= first) & (at < last) ? load(own + i) : hidden;
      store(own + i, v);
      highest = larger(highest, v);
    }
    const float top = largest(highest);
    if (top > part.best[row]) {
      const float factor = exponential(broadcast(part.best[row] - top))[0];
      part.total[row] *= factor;
      float* values = part.values + row * s.head_dim;
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(values + i, load(values + i) * factor);
      part.best[row] = top;
    }
    // A row that has seen nothing yet: subtracting its maximum would not be a number.
    const float shift = part.best[row] == -INFINITY ? 0 : part.best[row];
    Floats weights{};
    for (int64_t i = 0; i < num_keys; i += LANES) {
      const Floats weight = exponential(load(own + i) - shift);
      store(own + i, weight);
      weights += weight;
    }
    part.total[row] += sum(weights);
  }

  template <int ROWS>
  void add_values(int64_t row, int64_t num_keys) {
    constexpr int VECTORS = vectors_beside(ROWS);
    int64_t column = 0;
    for (; column + VECTORS * LANES <= s.head_dim; column += VECTORS * LANES)
      add_columns<ROWS, VECTORS>(row, num_keys, column);
    for (; column < s.head_dim; column += LANES) add_columns<ROWS, 1>(row, num_keys, column);
  }

  template <int ROWS, int VECTORS>
  void add_columns(int64_t row, int64_t num_keys, int64_t column) {
    Floats products[ROWS][VECTORS];
    float* own = part.values + row * s.head_dim + column;
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) products[i][v] = load(own + i * s.head_dim + v * LANES);
    // Never past the end of the sequence: what lies there was never written and may be NaN.
    for (int64_t key = 0; key < num_keys;) {
      const int64_t offset = (tile + key) % s.block_size;
      const int64_t in_block = s.block_size - offset, left = num_keys - key;
      const int64_t depth = in_block < left ? in_block : left;
      const float* first = value_row(key) + column;
      const float* weights = scores + row * TILE_KEYS + key;
      key += depth;
      const float* next = key < num_keys ? value_row(key) + column : first;
      multiply(weights, TILE_KEYS, depth, Values{first, next, s.head_dim}, products);
    }
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) store(own + i * s.head_dim + v * LANES, products[i][v]);
  }

  void store_output() const {
    for (int64_t row = 0; row < num_rows; row++) {
      const int64_t token = work.token + row / s.group_size;
      float* target = s.output + ((token * s.num_kv_heads + work.head) * s.group_size +
                                  row % s.group_size) * s.head_dim;
      const float factor = 1.0f / whole.total[row];
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(target + i, load(whole.values + row * s.head_dim + i) * factor);
    }
  }

  const Call& s;
  Work& work;
  const int32_t* blocks;
  const bool needs_copy;
  const int64_t num_rows;
  const int64_t first_position;  // of the first token
  int64_t tile = 0, num_keys = 0;
  float* memory;
  Sums whole, part;
  float* query;        // [num_rows][head_dim], scaled
  float* scores;       // [num_rows][TILE_KEYS]
  float* copied_keys;  // [head_dim][TILE_KEYS]
};
