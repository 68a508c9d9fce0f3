// What the kernels use of OpenMP, by std::thread: libgomp waits in ways that ThreadSanitizer cannot see, and every
// parallel region would be a false report.
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// The threads of a region, and the iterations of its loop that none of them has taken.
struct Team {
  int size = 1;
  std::once_flag begun;
  std::atomic<long> next{0};
  long end = 0, chunk = 1;
};

Team alone;
thread_local Team* team = &alone;
thread_local int number = 0;

void run(void (*body)(void*), void* data, Team& of) {
  std::vector<std::thread> others;
  for (int other = 1; other < of.size; ++other)
    others.emplace_back([&of, other, body, data] {
      team = &of;
      number = other;
      body(data);
    });
  Team* const outer = team;
  const int outer_number = number;
  team = &of;
  number = 0;
  body(data);
  team = outer;
  number = outer_number;
  for (std::thread& other : others) other.join();
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team->size; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team of;
  of.size = static_cast<int>(threads);
  run(body, data, of);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
  *first = team->next.fetch_add(team->chunk);
  *last = *first + team->chunk < team->end ? *first + team->chunk : team->end;
  return *first < team->end;
}

// Called by every thread. Steps of loops are 1 here, and a region has one loop.
bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long, long chunk, long* first, long* last) {
  std::call_once(team->begun, [&] {
    team->next = begin;
    team->end = end;
    team->chunk = chunk;
  });
  return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait() {}
}
