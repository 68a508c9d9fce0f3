"""Captures on several devices, and captures that fail: device and stream of every call, memory, generators."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from pygen.call.threads import contexts_of_this_thread
from pygen.graph.cuda_graph import CudaGraph
from pygen.graph.recording import Pool, empty_cache
from tests.runtime.fake_cuda import COPY, FakeCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def captured(parts: Sequence[Callable[[], object]], pool: Pool) -> CudaGraph:
    return CudaGraph(parts, lambda: None, pool)


def pools(count: int = 2) -> list[Pool]:
    return [CudaGraph.new_pool(torch.device("cuda", index)) for index in range(count)]


def in_use(cuda: FakeCuda) -> dict[object, int]:
    return {pool: count for (_, pool), count in cuda.pools.items() if count > 0}


def check_idle(cuda: FakeCuda) -> None:
    """As a caller left it: eager work, a draw and another capture run on every device."""
    assert cuda.device == 0 and cuda.streams == cuda.default_streams
    assert not cuda.underway
    for pool in pools():
        cuda.draw(pool.device.index)
        captured([functools.partial(cuda.launch, pool.device.index)], pool)


@pytest.mark.parametrize("current", [0, 1])
def test_every_device_has_its_own_stream(cuda: FakeCuda, current: int) -> None:
    cuda.device = current
    streams = []
    for pool in [*pools(), *pools()]:
        index = pool.device.index
        cuda.log.clear()
        graph = captured([functools.partial(cuda.launch, index)] * 2, pool)
        (stream,) = {stream for _, _, stream in cuda.log}
        assert [(what, device) for what, device, _ in cuda.log] == [
            *[("launch", index)] * 4,
            ("capture", index),
            *[("launch", index)] * 2,
        ]
        assert stream.device.index == index and stream is not cuda.default_streams[index]
        streams.append(stream)
        cuda.log.clear()
        graph.replay()
        assert cuda.log == [("replay", index, cuda.default_streams[index])]
        assert cuda.device == current and cuda.streams == cuda.default_streams
    assert streams[:2] == streams[2:] and streams[0] is not streams[1]


def test_new_pool_of_the_current_device(cuda: FakeCuda) -> None:
    cuda.device = 1
    assert CudaGraph.new_pool().device == torch.device("cuda", 1)


@pytest.mark.parametrize("elsewhere", ["another device", "no kernel"])
def test_a_capture_without_kernels(cuda: FakeCuda, elsewhere: str) -> None:
    pool = CudaGraph.new_pool(torch.device("cuda", 0))
    part = (lambda: cuda.launch(1)) if elsewhere == "another device" else (lambda: cuda.launch(0, COPY))
    with pytest.raises(RuntimeError, match="it recorded no kernel: nothing ran on the current stream of cuda:0"):
        captured([part], pool)
    assert in_use(cuda) == {}
    check_idle(cuda)


class Wrong(Exception):
    pass


def test_a_part_that_spoils_the_capture(cuda: FakeCuda) -> None:
    pool, other = pools()
    first = captured([lambda: cuda.launch(0)], pool)
    kept = dict(in_use(cuda))
    # The error is that of the part, not that of the capture's end.
    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        captured([lambda: cuda.launch(0), cuda.read_on_the_host], pool)
    assert in_use(cuda) == kept
    first.replay()
    again = captured([lambda: cuda.launch(0)], pool)
    again.replay()
    captured([lambda: cuda.launch(1)], other)
    check_idle(cuda)


def test_a_part_that_hides_its_error(cuda: FakeCuda) -> None:
    def hides() -> None:
        with contextlib.suppress(RuntimeError):
            cuda.read_on_the_host()

    with pytest.raises(RuntimeError, match="due to a previous error during capture"):
        captured([hides], CudaGraph.new_pool())
    assert in_use(cuda) == {}
    check_idle(cuda)


@pytest.mark.parametrize("runs", [0, 1, 2])
def test_a_part_that_raises(cuda: FakeCuda, runs: int) -> None:
    """In a warm-up, or in the capture."""
    left = [runs]

    def part() -> None:
        cuda.launch(0)
        if left[0] == 0:
            raise Wrong
        left[0] -= 1

    pool = CudaGraph.new_pool()
    with pytest.raises(Wrong):
        captured([part], pool)
    assert in_use(cuda) == {}
    captured([lambda: cuda.launch(0)], pool).replay()
    check_idle(cuda)


def test_one_thread_captures_at_a_time(cuda: FakeCuda) -> None:
    busy, most = [0], [0]

    def part() -> None:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        time.sleep(0.002)
        cuda.launch(0)
        busy[0] -= 1

    threads = [threading.Thread(target=captured, args=([part], CudaGraph.new_pool())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(cuda.pools) == 4


def test_memory_is_given_back_between_captures(cuda: FakeCuda) -> None:
    given_back: list[bool] = []

    def give_back() -> None:
        empty_cache()
        given_back.append(not cuda.underway)

    def part() -> None:
        cuda.launch(0)
        if cuda.underway:
            thread.start()
            thread.join(timeout=0.05)
            assert given_back == []

    thread = threading.Thread(target=give_back)
    captured([part], CudaGraph.new_pool())
    thread.join()
    assert given_back == [True]


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("chosen", [[], [0], [1], [0, 1]])
def test_a_thread_takes_over_device_and_streams(cuda: FakeCuda, current: int, chosen: list[int]) -> None:
    cuda.device = current
    for index in chosen:
        cuda.streams[index] = torch.cuda.Stream(index)  # type: ignore[call-overload]
    wanted = [*cuda.streams]
    contexts = contexts_of_this_thread()
    assert len(contexts) == len({*chosen, current})
    cuda.device, cuda.streams = 0, [*cuda.default_streams]
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        assert (cuda.device, cuda.streams) == (current, wanted)
    assert (cuda.device, cuda.streams) == (0, cuda.default_streams)
