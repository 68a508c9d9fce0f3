// What the kernels use of OpenMP, by std::thread: libgomp waits in ways that ThreadSanitizer cannot see, and every
// parallel region would be a false report.
#include <atomic>
#include <thread>
#include <vector>

namespace {

struct Team {
  int size = 1;
  std::atomic<long> next{0};
  long end = 0, step = 1;
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
  *first = team->next.fetch_add(team->step);
  *last = *first + team->step < team->end ? *first + team->step : team->end;
  return *first < team->end;
}

void GOMP_parallel_loop_nonmonotonic_dynamic(void (*body)(void*), void* data, unsigned threads, long first, long last,
                                             long, long chunk, unsigned) {
  Team of;
  of.size = static_cast<int>(threads);
  of.next = first;
  of.end = last;
  of.step = chunk;
  run(body, data, of);
}

void GOMP_loop_end_nowait() {}
}
