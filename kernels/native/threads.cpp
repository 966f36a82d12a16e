// A set of helper threads that can be late without harm.
//
// OpenMP's threads all have to take part in every loop: where one of them waits for its core, which
// other processes use too, everybody waits, spinning. Here a loop ends as soon as its items are
// done. A helper that comes late finds the loop closed; only one in the midst of an item is waited
// for. Who waits spins for a moment only and sleeps then, so cores are free for others between
// steps, and a forked child, which has no helpers, does its loops alone.

#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>

namespace {

// One word says it all: whether a loop is open, how many helpers are inside it, which loop it is.
constexpr uint32_t OPEN = 1, HELPER = 2, HELPERS = 0x7fe, LOOP = 0x800;
constexpr int64_t MAX_HELPERS = 1000;
constexpr int64_t SPIN_NS = 100'000;  // some times the gap between two operations of a step

std::atomic<uint32_t> state{0};
std::atomic<uint32_t> num_sleeping{0};
std::atomic<int64_t> num_helpers_wanted{0};
std::atomic<int64_t> next_item{0};
int64_t num_helpers = 0;
pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;

// The open loop; written while no helper is inside.
struct Loop {
  int64_t num_items;
  void (*run)(const void*, int64_t);
  const void* context;
} loop;

uint32_t loop_of(uint32_t s) { return s / LOOP; }

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

void wake_all() {
  syscall(SYS_futex, (uint32_t*)&state, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Waits until `is_over(state)`: spins, then sleeps. Returns the state that was over.
template <class IsOver>
uint32_t wait_until(const IsOver& is_over) {
  const int64_t deadline = now_ns() + SPIN_NS;
  for (int i = 1;; i++) {
    const uint32_t s = state.load(std::memory_order_acquire);
    if (is_over(s)) return s;
    __builtin_ia32_pause();
    if (i % 64 == 0 && now_ns() > deadline) break;
  }
  for (;;) {
    num_sleeping.fetch_add(1);
    const uint32_t s = state.load();
    const bool is_done = is_over(s);
    if (!is_done)
      syscall(SYS_futex, (uint32_t*)&state, FUTEX_WAIT_PRIVATE, s, nullptr, nullptr, 0);
    num_sleeping.fetch_sub(1);
    if (is_done) return s;
  }
}

void run_items() {
  for (;;) {
    const int64_t item = next_item.fetch_add(1, std::memory_order_relaxed);
    if (item >= loop.num_items) return;
    loop.run(loop.context, item);
  }
}

void* help(void* argument) {
  const int64_t number = (int64_t)argument;
  uint32_t last = loop_of(state.load());
  for (;;) {
    uint32_t s = wait_until([&](uint32_t s) { return (s & OPEN) && loop_of(s) != last; });
    if (!state.compare_exchange_weak(s, s + HELPER)) continue;  // as it was, or look again
    last = loop_of(s);
    if (number < num_helpers_wanted.load(std::memory_order_relaxed)) run_items();
    if (((state.fetch_sub(HELPER) - HELPER) & (HELPERS | OPEN)) == 0 && num_sleeping.load())
      wake_all();
  }
  return nullptr;
}

}  // namespace

void share_out_items(int64_t num_items, void (*run)(const void*, int64_t), const void* context) {
  // Loops of other threads are run where they are, without help.
  if (num_items < 2 || !num_helpers_wanted.load() || pthread_mutex_trylock(&owner)) {
    for (int64_t item = 0; item < num_items; item++) run(context, item);
    return;
  }
  loop = Loop{num_items, run, context};
  next_item.store(0, std::memory_order_relaxed);
  state.store((loop_of(state.load()) + 1) * LOOP | OPEN);
  if (num_sleeping.load()) wake_all();
  run_items();
  state.fetch_and(~OPEN);
  wait_until([](uint32_t s) { return (s & HELPERS) == 0; });
  pthread_mutex_unlock(&owner);
}

// Uses `num_threads` threads, the caller's among them, from the next loop on.
extern "C" void set_num_threads(int64_t num_threads) {
  pthread_mutex_lock(&owner);
  const int64_t wanted = num_threads - 1 < MAX_HELPERS ? num_threads - 1 : MAX_HELPERS;
  for (; num_helpers < wanted; num_helpers++) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, help, (void*)num_helpers)) break;  // fewer, then
    pthread_detach(thread);
  }
  num_helpers_wanted.store(wanted);
  pthread_mutex_unlock(&owner);
}
