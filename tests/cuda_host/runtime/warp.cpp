// The functions that the lanes of a warp carry out together.
#include <algorithm>
#include <cstdio>

#include "runtime/report.h"
#include "runtime/scheduler.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSync: return "__syncwarp";
    case WarpOp::kShuffle: return "__shfl_sync";
    case WarpOp::kShuffleUp: return "__shfl_up_sync";
    case WarpOp::kShuffleDown: return "__shfl_down_sync";
    case WarpOp::kShuffleXor: return "__shfl_xor_sync";
    case WarpOp::kBallot: return "__ballot_sync";
    case WarpOp::kAny: return "__any_sync";
    case WarpOp::kAll: return "__all_sync";
    case WarpOp::kMatchAny: return "__match_any_sync";
    case WarpOp::kMatchAll: return "__match_all_sync";
    case WarpOp::kReduceAdd: return "__reduce_add_sync";
    case WarpOp::kReduceMin:
    case WarpOp::kReduceMinSigned: return "__reduce_min_sync";
    case WarpOp::kReduceMax:
    case WarpOp::kReduceMaxSigned: return "__reduce_max_sync";
    case WarpOp::kReduceAnd: return "__reduce_and_sync";
    case WarpOp::kReduceOr: return "__reduce_or_sync";
    case WarpOp::kReduceXor: return "__reduce_xor_sync";
  }
  return "";
}

template <typename Visit>
void for_lanes(Warp& warp, unsigned mask, const Visit& visit) {
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) visit(warp.lanes[__builtin_ctz(rest)]);
}

// The lane that a shuffle reads; itself where the source lies outside of its segment of `width` lanes.
int source_lane(WarpOp op, const Thread& thread) {
  const int lane = static_cast<int>(thread.lane);
  const int begin = lane & ~(thread.width - 1);
  const int end = begin + thread.width;
  switch (op) {
    case WarpOp::kShuffle: return begin + (thread.argument & (thread.width - 1));
    case WarpOp::kShuffleUp: return lane - thread.argument < begin ? lane : lane - thread.argument;
    case WarpOp::kShuffleDown: return lane + thread.argument >= end ? lane : lane + thread.argument;
    default: return (lane ^ thread.argument) >= end ? lane : lane ^ thread.argument;
  }
}

void shuffle(WarpOp op, Warp& warp, unsigned mask) {
  for_lanes(warp, mask, [&](Thread& thread) {
    const int source = source_lane(op, thread);
    if ((mask >> source & 1u) == 0)
      fail("warp", &thread, thread.place,
           std::string(name_of(op)) + " reads lane " + std::to_string(source) + ", which does not take part");
    thread.result = warp.lanes[source].value;
  });
}

uint64_t reduced(WarpOp op, Warp& warp, unsigned mask) {
  bool first = true;
  uint32_t sum = 0;
  for_lanes(warp, mask, [&](const Thread& thread) {
    const auto next = static_cast<uint32_t>(thread.value);
    const auto a = static_cast<int32_t>(sum);
    const auto b = static_cast<int32_t>(next);
    if (first) {
      sum = next;
    } else {
      switch (op) {
        case WarpOp::kReduceAdd: sum += next; break;
        case WarpOp::kReduceMin: sum = std::min(sum, next); break;
        case WarpOp::kReduceMax: sum = std::max(sum, next); break;
        case WarpOp::kReduceMinSigned: sum = static_cast<uint32_t>(std::min(a, b)); break;
        case WarpOp::kReduceMaxSigned: sum = static_cast<uint32_t>(std::max(a, b)); break;
        case WarpOp::kReduceAnd: sum &= next; break;
        case WarpOp::kReduceOr: sum |= next; break;
        default: sum ^= next;
      }
    }
    first = false;
  });
  return sum;
}

unsigned lanes_with(Warp& warp, unsigned mask, uint64_t value) {
  unsigned lanes = 0;
  for_lanes(warp, mask, [&](const Thread& thread) { lanes |= (thread.value == value ? 1u : 0u) << thread.lane; });
  return lanes;
}

void synchronize(Warp& warp, unsigned mask) {
  std::array<uint32_t, kWarp> together{};
  ++warp.time;
  for_lanes(warp, mask, [&](const Thread& thread) {
    for (size_t i = 0; i < kWarp; ++i) together[i] = std::max(together[i], warp.reach[thread.lane][i]);
  });
  for_lanes(warp, mask, [&](const Thread& thread) { together[thread.lane] = warp.time; });
  for_lanes(warp, mask, [&](const Thread& thread) { warp.reach[thread.lane] = together; });
}

void carry_out(WarpOp op, Warp& warp, unsigned mask) {
  const auto give = [&](const auto& result_of) {
    for_lanes(warp, mask, [&](Thread& thread) { thread.result = result_of(thread); });
  };
  switch (op) {
    case WarpOp::kSync: synchronize(warp, mask); break;
    case WarpOp::kShuffle:
    case WarpOp::kShuffleUp:
    case WarpOp::kShuffleDown:
    case WarpOp::kShuffleXor: shuffle(op, warp, mask); break;
    case WarpOp::kBallot: give([&, lanes = lanes_with(warp, mask, 1)](const Thread&) { return lanes; }); break;
    case WarpOp::kAny: give([&, any = lanes_with(warp, mask, 1) != 0](const Thread&) { return any; }); break;
    case WarpOp::kAll: give([&, all = lanes_with(warp, mask, 1) == mask](const Thread&) { return all; }); break;
    case WarpOp::kMatchAny: give([&](const Thread& thread) { return lanes_with(warp, mask, thread.value); }); break;
    case WarpOp::kMatchAll:
      give([&](const Thread& thread) { return lanes_with(warp, mask, thread.value) == mask ? mask : 0; });
      break;
    default: give([&, result = reduced(op, warp, mask)](const Thread&) { return result; });
  }
}

// Called at every warp function, so it makes no text before there is a failure.
void check_mask(WarpOp op, const Thread& thread, unsigned mask, int width, const void* place) {
  const unsigned size = thread.warp->size;
  const auto refuse = [&](const std::string& rule) {
    char words[16];
    std::snprintf(words, sizeof(words), "0x%08x", mask);
    fail("mask", &thread, place, std::string(name_of(op)) + " with mask " + words + rule);
  };
  if ((mask >> thread.lane & 1u) == 0) refuse(" is called by a lane outside of it");
  if (size < kWarp && mask >> size != 0)
    refuse(" names lanes that a warp of " + std::to_string(size) + " threads lacks");
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0)
    refuse(" has width " + std::to_string(width) + ", which is no power of two up to 32");
}

}  // namespace

uint64_t meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument, int width) {
  const void* place = __builtin_return_address(0);
  Thread& self = current();
  Warp& warp = *self.warp;
  check_mask(op, self, mask, width, place);
  self.value = value;
  self.argument = argument;
  self.width = width;
  self.place = place;
  std::vector<Meeting>& meetings = warp.meetings;
  auto meeting = std::find_if(meetings.begin(), meetings.end(),
                              [&](const Meeting& other) { return other.op == op && other.mask == mask; });
  if (meeting == meetings.end()) meeting = meetings.insert(meeting, {op, mask, 0});
  meeting->arrived |= 1u << self.lane;
  if (meeting->arrived != mask) {
    suspend(name_of(op), place);
    return self.result;
  }
  meetings.erase(meeting);
  carry_out(op, warp, mask);
  for_lanes(warp, mask & ~(1u << self.lane), [](Thread& thread) { wake(thread); });
  return self.result;
}

}  // namespace pygen::cuda::host
