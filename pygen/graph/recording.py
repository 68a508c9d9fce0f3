"""Records CUDA graphs: on which stream, into which memory, and what a recording that fails leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

# torch captures one graph at a time in a process: a second capture would find its allocator busy.
_one_at_a_time = threading.RLock()
_streams: dict[int, torch.cuda.Stream] = {}
# torch's host allocator may ask a graph whose capture failed which streams it captured, as long as the process runs.
_failed: list[torch.cuda.CUDAGraph] = []

_KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL


class Pool:
    """Memory on one device that several graphs share, since they never run at once."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.renew()

    def renew(self) -> None:
        """Lets later graphs take other memory; earlier ones keep theirs."""
        self.handle: Any = torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def recording(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """Makes the capture stream of `device` current, and yields it. One thread records at a time.

    Work on the stream follows what the caller has queued, and what the caller queues later follows the work.
    """
    with _one_at_a_time, torch.cuda.device(device):
        if device.index not in _streams:
            _streams[device.index] = torch.cuda.Stream(device)
        stream, callers = _streams[device.index], torch.cuda.current_stream(device)
        stream.wait_stream(callers)
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            callers.wait_stream(stream)


def record(parts: Sequence[Callable[[], object]], pool: Pool, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Captures `parts` inside `recording(pool.device)`. Raises what a part or the capture raises first.

    After an error the allocator, the generators and the stream are as before, and `pool` is renewed.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    errors: list[BaseException] = []
    try:
        # Other threads may go on with what a capture forbids.
        with torch.cuda.graph(graph, pool=pool.handle, stream=stream, capture_error_mode="thread_local"):
            try:
                for part in parts:
                    part()
            except BaseException as error:
                # The end of a capture that a part has spoilt raises an error that does not say why.
                errors.append(error)
                raise
        if not _has_kernels(graph):
            raise RuntimeError(f"it recorded no kernel: nothing ran on the current stream of {pool.device}")
        graph.instantiate()
    except BaseException as error:
        _give_up(graph, pool, stream)
        if errors and error is not errors[0]:
            raise errors[0] from None
        raise
    return graph


def empty_cache() -> None:
    """Gives unused memory back to the GPUs, between captures: during one torch's allocator refuses to."""
    with _one_at_a_time:
        torch.cuda.empty_cache()


def _has_kernels(graph: torch.cuda.CUDAGraph) -> bool:
    driver = ctypes.CDLL("libcuda.so.1")
    handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    _check(driver.cuGraphGetNodes(handle, None, ctypes.byref(count)))
    nodes, kind = (ctypes.c_void_p * count.value)(), ctypes.c_int()
    _check(driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)))
    for node in nodes:
        _check(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        if kind.value == _KERNEL_NODE:
            return True
    return False


def _check(error: int) -> None:
    if error != 0:
        raise RuntimeError(f"the CUDA driver cannot list the nodes of a graph: error {error}")


def _give_up(graph: torch.cuda.CUDAGraph, pool: Pool, stream: torch.cuda.Stream) -> None:
    """Ends what a failed capture has begun. torch itself does so only where the capture could be ended."""
    handle, index = pool.handle, pool.device.index
    # torch refuses a handle whose last graph is gone.
    pool.renew()
    graph.reset()
    try:
        torch._C._cuda_endAllocateToPool(index, handle)
    except RuntimeError:
        return  # ended already, and `reset` has released the pool
    torch._C._cuda_releasePool(index, handle)
    _failed.append(graph)
    # Generators wait for the end of the capture that they saw begin. The end of any other one serves.
    with contextlib.suppress(RuntimeError):
        cell, other = torch.empty(1, device=pool.device), torch.cuda.CUDAGraph()
        with torch.cuda.graph(other, stream=stream, capture_error_mode="thread_local"):
            cell.zero_()
        other.reset()
