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
