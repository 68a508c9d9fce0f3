"""The counters of `bench_gpu_generate`: host launches and waits, memory, captures, and copy bandwidth."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from pygen.graph.cuda_graph import CAPTURES

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaLaunchCooperativeKernel",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
)
GRAPH_LAUNCH = "cudaGraphLaunch"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_MEASURED, _FORWARD = "pygen: measured", "pygen: forward"
_COUNTED = {*LAUNCHES, GRAPH_LAUNCH, *WAITS}
_NO_KERNELS = ("Memcpy", "Memset", "pygen: ")
_COPIED_BYTES = {"cuda": 1 << 29, "cpu": 1 << 24}


@dataclasses.dataclass(frozen=True)
class Activity:
    """Events of one call.

    launches: kernels that the host launches. graphs: whole graphs that it launches. waits: times that the host waits
    for the device. kernels: kernels that the device runs. The two forward fields count the model's forward alone.
    """

    launches: float = 0
    graphs: float = 0
    waits: float = 0
    kernels: float = 0
    launches_in_forward: float = 0
    waits_in_forward: float = 0

    def per(self, other: Activity, tokens: int) -> Activity:
        """Returns the difference from `other`, divided by `tokens`."""
        names = [field.name for field in dataclasses.fields(self)]
        return Activity(*((getattr(self, name) - getattr(other, name)) / tokens for name in names))


def tally(events: Iterable[Any]) -> Activity:
    """Counts Kineto's events. Host events count only inside the measured region."""
    calls: dict[str, list[int]] = {}
    regions: dict[str, list[tuple[int, int]]] = {_MEASURED: [], _FORWARD: []}
    kernels = 0
    for event in events:
        name = event.name()
        if event.device_type() == DeviceType.CUDA:
            kernels += not event.is_user_annotation() and not name.startswith(_NO_KERNELS)
        elif name in regions:
            regions[name].append((event.start_ns(), event.end_ns()))
        elif name in _COUNTED:
            calls.setdefault(name, []).append(event.start_ns())

    def count(names: Iterable[str], *inside: str) -> int:
        starts = [start for name in names for start in calls.get(name, ())]
        return sum(all(_within(start, regions[region]) for region in inside) for start in starts)

    return Activity(
        launches=count(LAUNCHES, _MEASURED),
        graphs=count([GRAPH_LAUNCH], _MEASURED),
        waits=count(WAITS, _MEASURED),
        kernels=kernels,
        launches_in_forward=count(LAUNCHES, _MEASURED, _FORWARD),
        waits_in_forward=count(WAITS, _MEASURED, _FORWARD),
    )


def _within(start: int, ranges: list[tuple[int, int]]) -> bool:
    index = bisect.bisect_right(ranges, (start, math.inf)) - 1
    return index >= 0 and start <= ranges[index][1]


def profiled(call: Callable[[], object], device: torch.device) -> Activity:
    """Counts the activity of `call()`, its work on the device included."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities) as profiler:
        with record_function(_MEASURED):
            call()
        synchronize(device)
    # `profiler.events()` would build a hundred thousand Python objects.
    results: Any = profiler.profiler
    return tally(results.kineto_results.events())


def per_token(call: Callable[[int], object], max_tokens: int, min_tokens: int, device: torch.device) -> Activity:
    """Returns the activity of `call` per token: the difference between calls for `max_tokens` and `min_tokens` tokens.

    Work that a call does once therefore does not count.
    """
    long, short = (profiled(functools.partial(call, tokens), device) for tokens in (max_tokens, min_tokens))
    return long.per(short, max_tokens - min_tokens)


@contextmanager
def marked_forwards(model: torch.nn.Module) -> Iterator[None]:
    """Marks the forwards of `model` for `profiled`, where Python runs them."""
    running: list[Any] = []

    def begin(*_: object) -> None:
        running.append(record_function(_FORWARD))
        running[-1].__enter__()

    def end(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclasses.dataclass
class Watched:
    """The captures of a call: their total seconds, and the activity of the last captured step.

    The step then runs piece by piece: the model's forward, and the rest.
    """

    seconds: float = 0.0
    count: int = 0
    forward: Activity = Activity()
    rest: Activity = Activity()


class _Watching:
    """Replaces a kind of capture: makes one, and records its seconds and activity."""

    def __init__(self, kind: Any, device: torch.device, watched: Watched) -> None:
        self._kind, self._device, self._watched = kind, device, watched
        self.new_pool = kind.new_pool

    def __call__(self, parts: Sequence[Callable[[], object]], restore: Callable[[], object], pool: Any) -> Any:
        watched, device = self._watched, self._device
        synchronize(device)
        start = time.perf_counter()
        made = self._kind(parts, restore, pool)
        synchronize(device)
        watched.seconds += time.perf_counter() - start
        watched.count += 1
        forward, *rest = parts
        watched.forward = profiled(forward, device)
        watched.rest = profiled(lambda: [part() for part in rest], device)
        restore()
        return made


@contextmanager
def watched_captures(device: torch.device) -> Iterator[Watched]:
    """Times every capture of the block, and runs its parts once more without a graph to count them."""
    kind, watched = CAPTURES.get(device.type), Watched()
    if kind is None:
        yield watched
        return
    CAPTURES[device.type] = _Watching(kind, device, watched)
    try:
        yield watched
    finally:
        CAPTURES[device.type] = kind


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated_bytes(device: torch.device) -> int:
    """Returns torch's count of allocated bytes; 0 on the CPU, where torch does not count."""
    if device.type != "cuda":
        return 0
    gc.collect()
    synchronize(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Returns the peak bytes that `call()` allocates on top of earlier allocations; None on the CPU."""
    before = allocated_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None


def copy_gb_per_s(device: torch.device) -> tuple[int, float]:
    """Returns the bytes that a large copy reads and writes, and its median speed."""
    source = torch.randint(256, (_COPIED_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = source.clone()
    seconds = []
    for _ in range(12):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        synchronize(device)
        seconds.append((time.perf_counter() - start) / 4)
    moved = 2 * source.numel()
    return moved, moved / statistics.median(seconds) / 1e9
