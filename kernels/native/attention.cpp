// Paged attention, read straight from the blocks of the cache: how a step's work is shared out.
//
// Threads share the long sequences of few queries part by part; of other sequences a thread has
// some queries and attends all their parts.

#include "attention.h"
#include "threads.h"

namespace {

constexpr int64_t TILE_ROWS = 96;  // query rows of a piece of work: token by token, head by head

int64_t tokens_at_once(const Call& s) {
  return s.group_size < TILE_ROWS ? TILE_ROWS / s.group_size : 1;
}

int64_t tiles_of(const Call& s, int64_t sequence) {
  const int64_t num_tokens = s.query_start_loc[sequence + 1] - s.query_start_loc[sequence];
  return (num_tokens + tokens_at_once(s) - 1) / tokens_at_once(s);
}

Work work_of(const Call& s, int64_t sequence, int64_t head, int64_t tile) {
  const int64_t end = s.query_start_loc[sequence + 1];
  const int64_t token = s.query_start_loc[sequence] + tile * tokens_at_once(s);
  const int64_t last_token = token + tokens_at_once(s) < end ? token + tokens_at_once(s) : end;
  const int64_t first_high = s.seq_lens[sequence] - (end - token) + 1;
  const int64_t last_high = s.seq_lens[sequence] - (end - last_token);
  const int64_t low = s.window && first_high > s.window ? first_high - s.window : 0;
  const int64_t last_part = (last_high + PART_KEYS - 1) / PART_KEYS;
  return Work{sequence, head, token, last_token, low / PART_KEYS, last_part, {}};
}

}  // namespace

extern "C" void paged_attention(const float* heads, const float* kv_cache, const Step* step,
                                int64_t window, float* output) {
  const Call s{*step, heads, kv_cache, kv_cache + step->cache_size(), output, window};
  std::vector<Work> works;
  // The last come first: those with the most keys, so that what ends the loops is short.
  for (int64_t i = s.num_seqs - 1; i >= 0; i--)
    for (int64_t tile = tiles_of(s, i) - 1; tile >= 0; tile--)
      for (int64_t head = 0; head < s.num_kv_heads; head++)
        works.push_back(work_of(s, i, head, tile));
  struct Item {
    Work* work;
    int64_t part;  // -1: all of them
  };
  std::vector<Item> items;
  std::vector<Work*> shared;
  for (Work& work : works) {
    const int64_t num_parts = work.last_part - work.first_part;
    if (tiles_of(s, work.sequence) > 1 || num_parts == 1) {
      items.push_back(Item{&work, -1});
      continue;
    }
    const int64_t num_rows = (work.last_token - work.token) * s.group_size;
    work.sums.resize(num_parts * Sums::size(num_rows, s.head_dim));
    shared.push_back(&work);
    for (int64_t i = work.first_part; i < work.last_part; i++) items.push_back(Item{&work, i});
  }
  share_out(items.size(), [&](int64_t i) {
    Attention attention(s, *items[i].work);
    if (items[i].part < 0)
      attention.run();
    else
      attention.run_part(items[i].part);
  });
  share_out(shared.size(), [&](int64_t i) { Attention(s, *shared[i]).merge_parts(); });
}
