// Threads that share out work.

#pragma once

#include <cstdint>

// Calls run(context, 0) to run(context, num_items - 1), from this thread and the helpers.
void share_out_items(int64_t num_items, void (*run)(const void*, int64_t), const void* context);

// The same for a callable of one argument. Items are handed out as threads come for them, so that
// one held up by other work on its core gets fewer.
template <class Action>
static inline void share_out(int64_t num_items, const Action& action) {
  const auto run = [](const void* context, int64_t item) { (*(const Action*)context)(item); };
  share_out_items(num_items, run, &action);
}

constexpr int64_t ELEMENTS_AT_ONCE = 8192;  // handed to a thread: more than waking it costs

// Calls action(row) for every row, whatever number of them is worth a thread's while.
template <class Action>
static inline void share_rows(int64_t num_rows, int64_t width, const Action& action) {
  const int64_t at_once = width < ELEMENTS_AT_ONCE ? ELEMENTS_AT_ONCE / width : 1;
  share_out((num_rows + at_once - 1) / at_once, [&](int64_t item) {
    const int64_t end = (item + 1) * at_once;
    for (int64_t row = item * at_once; row < (end < num_rows ? end : num_rows); row++) action(row);
  });
}
