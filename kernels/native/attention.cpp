// Paged attention, read straight from the blocks of the cache.
//
// Keys lie transposed within their block, [head_dim][block_size], so that the scores of LANES keys
// are a product with vectors as they come. The softmax is taken in tiles of TILE_KEYS positions,
// with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., 2205.14135).
// Tiles begin at the same positions of a sequence whatever the step computes of it, and every sum
// runs in the order of the positions. So a query's result does not depend on the queries beside it.

#include <cmath>
#include <cstdlib>

#include "operations.h"
#include "product.h"
#include "threads.h"

namespace {

constexpr int64_t TILE_KEYS = 128;
constexpr int64_t TILE_ROWS = 96;  // query rows of a work item: token by token, head by head

// One layer's attention in a step.
struct Call : Step {
  const float* heads;   // [num_tokens][num_kv_heads][group_size queries, key, value][head_dim]
  const float* keys;    // [blocks][num_kv_heads][head_dim][block_size]
  const float* values;  // [blocks][num_kv_heads][block_size][head_dim]
  float* output;        // [num_tokens][num_kv_heads][group_size][head_dim]
  int64_t window;
};

// Queries token..last_token of one sequence against one KV head.
struct Item {
  int64_t sequence, head, token, last_token;
};

// `VECTORS` times LANES keys from `position` on, as vectors over the keys for each k < head_dim.
struct Keys {
  const float* first[8];
  int64_t stride;

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int v = 0; v < VECTORS; v++) vectors[v] = ::load(first[v] + k * stride);
  }
};

struct Values {
  const float* first;
  int64_t stride;

  template <int VECTORS>
  void load(int64_t k, Floats (&vectors)[VECTORS]) const {
    for (int v = 0; v < VECTORS; v++) vectors[v] = ::load(first + k * stride + v * LANES);
  }
};

// One item's work: its rows against the keys, tile by tile.
class Attention {
 public:
  Attention(const Call& call, const Item& item)
      : s(call),
        item(item),
        blocks(call.block_tables + item.sequence * call.max_blocks),
        needs_copy(call.block_size % LANES != 0),
        num_rows((item.last_token - item.token) * call.group_size),
        first_position(call.seq_lens[item.sequence] -
                       (call.query_start_loc[item.sequence + 1] - item.token)) {
    const int64_t d = s.head_dim;
    memory = (float*)std::malloc(
        (num_rows * (2 * d + TILE_KEYS + 2) + TILE_KEYS * d) * sizeof(float));
    query = memory;
    sums = query + num_rows * d;
    scores = sums + num_rows * d;
    copied_keys = scores + num_rows * TILE_KEYS;
    best = copied_keys + TILE_KEYS * d;
    total = best + num_rows;
  }
  ~Attention() { std::free(memory); }

  void run() {
    load_queries();
    const int64_t end = high(num_rows - 1);
    for (tile = low(0) / TILE_KEYS * TILE_KEYS; tile < end; tile += TILE_KEYS) {
      num_keys = end - tile < TILE_KEYS ? end - tile : TILE_KEYS;
      if (needs_copy) copy_keys();
      for (int64_t row = 0; row < num_rows; row += MAX_ROWS) {
        const int64_t left = num_rows - row;
        with_rows(left < MAX_ROWS ? left : MAX_ROWS, Rows{*this, row});
      }
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

  void load_queries() {
    const float scale = s.scale;
    for (int64_t row = 0; row < num_rows; row++) {
      const int64_t head = item.head * (s.group_size + 2) + row % s.group_size;
      const float* source = s.heads + (item.token + row / s.group_size) * s.heads_width() +
                            head * s.head_dim;
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(query + row * s.head_dim + i, load(source + i) * scale);
      best[row] = -INFINITY;
      total[row] = 0;
    }
    std::memset(sums, 0, num_rows * s.head_dim * sizeof(float));
  }

  const float* block(const float* cache, int64_t position) const {
    return cache + (blocks[position / s.block_size] * s.num_kv_heads + item.head) *
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

  template <int ROWS>
  void score(int64_t row, int64_t num_keys) {
    constexpr int VECTORS = vectors_beside(ROWS);
    for (int64_t key = 0; key < num_keys; key += VECTORS * LANES) {
      Keys keys;
      keys.stride = needs_copy ? TILE_KEYS : s.block_size;
      for (int v = 0; v < VECTORS; v++) {
        const int64_t at = key + v * LANES;
        keys.first[v] = key_vector(at < num_keys ? at : key);  // past the end: any will do
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
    if (top > best[row]) {
      const float factor = exponential(broadcast(best[row] - top))[0];
      total[row] *= factor;
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(sums + row * s.head_dim + i, load(sums + row * s.head_dim + i) * factor);
      best[row] = top;
    }
    // A row that has seen nothing yet: subtracting its maximum would not be a number.
    const float shift = best[row] == -INFINITY ? 0 : best[row];
    Floats weights{};
    for (int64_t i = 0; i < num_keys; i += LANES) {
      const Floats weight = exponential(load(own + i) - shift);
      store(own + i, weight);
      weights += weight;
    }
    total[row] += sum(weights);
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
    float* own = sums + row * s.head_dim + column;
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) products[i][v] = load(own + i * s.head_dim + v * LANES);
    // Never past the end of the sequence: what lies there was never written and may be NaN.
    for (int64_t key = 0; key < num_keys;) {
      const int64_t offset = (tile + key) % s.block_size;
      const int64_t in_block = s.block_size - offset, left = num_keys - key;
      const int64_t depth = in_block < left ? in_block : left;
      const float* first = block(s.values, tile + key) + offset * s.head_dim + column;
      multiply(scores + row * TILE_KEYS + key, TILE_KEYS, depth, Values{first, s.head_dim},
               products);
      key += depth;
    }
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) store(own + i * s.head_dim + v * LANES, products[i][v]);
  }

  void store_output() const {
    for (int64_t row = 0; row < num_rows; row++) {
      const int64_t token = item.token + row / s.group_size;
      float* target = s.output + ((token * s.num_kv_heads + item.head) * s.group_size +
                                  row % s.group_size) * s.head_dim;
      const float factor = 1.0f / total[row];
      for (int64_t i = 0; i < s.head_dim; i += LANES)
        store(target + i, load(sums + row * s.head_dim + i) * factor);
    }
  }

  const Call& s;
  const Item& item;
  const int32_t* blocks;
  const bool needs_copy;
  const int64_t num_rows;
  const int64_t first_position;  // of the item's first token
  int64_t tile = 0, num_keys = 0;
  float* memory;
  float* query;        // [num_rows][head_dim], scaled
  float* sums;         // [num_rows][head_dim], weighted values so far
  float* scores;       // [num_rows][TILE_KEYS]
  float* copied_keys;  // [head_dim][TILE_KEYS]
  float* best;         // [num_rows], highest score so far
  float* total;        // [num_rows], weights so far
};

int64_t tokens_at_once(const Call& s) {
  return s.group_size < TILE_ROWS ? TILE_ROWS / s.group_size : 1;
}

int64_t tiles_of(const Call& s, int64_t sequence) {
  const int64_t num_tokens = s.query_start_loc[sequence + 1] - s.query_start_loc[sequence];
  return (num_tokens + tokens_at_once(s) - 1) / tokens_at_once(s);
}

}  // namespace

extern "C" void paged_attention(const float* heads, const float* kv_cache, const Step* step,
                                int64_t window, float* output) {
  const Call s{*step, heads, kv_cache, kv_cache + step->cache_size(), output, window};
  int64_t num_tiles = 0;
  for (int64_t i = 0; i < s.num_seqs; i++) num_tiles += tiles_of(s, i);
  Item* items = (Item*)std::malloc(num_tiles * s.num_kv_heads * sizeof(Item));
  int64_t num_items = 0;
  // The last come first: those with the most keys, so that what ends the loop is short.
  for (int64_t i = s.num_seqs - 1; i >= 0; i--)
    for (int64_t tile = tiles_of(s, i) - 1; tile >= 0; tile--)
      for (int64_t head = 0; head < s.num_kv_heads; head++) {
        const int64_t token = s.query_start_loc[i] + tile * tokens_at_once(s);
        const int64_t last = token + tokens_at_once(s), end = s.query_start_loc[i + 1];
        items[num_items++] = Item{i, head, token, last < end ? last : end};
      }
  share_out(num_items, [&](int64_t i) { Attention(s, items[i]).run(); });
  std::free(items);
}
