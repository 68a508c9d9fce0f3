"""A stand-in for the part of torch.cuda that captures use: current devices and streams, graphs, and the allocator.

`torch.cuda.graph` itself is torch's. The rest follows what torch 2.11 to 2.13 do: a capture that a part has spoilt
cannot be ended, and then leaves the allocator, the generators and the current stream as they were during the capture.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import pytest
import torch

from pygen.graph import recording

KERNEL, COPY = 0, 1


class Stream:
    def __init__(self, cuda: FakeCuda, device: Any = None) -> None:
        self.device = torch.device("cuda", cuda.index_of(device))
        self.graph: Graph | None = None  # captured here

    def wait_stream(self, other: Stream) -> None:
        assert self.graph is None and other.graph is None


class StreamContext:
    """As in torch, it makes the stream's device current too."""

    def __init__(self, cuda: FakeCuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream

    def __enter__(self) -> None:
        cuda, index = self._cuda, self._stream.device.index
        self._before = cuda.device, cuda.streams[index]
        cuda.device, cuda.streams[index] = index, self._stream

    def __exit__(self, *error: object) -> None:
        self._cuda.device, self._cuda.streams[self._stream.device.index] = self._before


class Graph:
    def __init__(self, cuda: FakeCuda, keep_graph: bool = False) -> None:
        self.cuda, self.keep_graph = cuda, keep_graph
        self.nodes: list[int] = []
        self.is_spoilt = self.is_ended = self.is_ready = False

    def capture_begin(self, pool: Any = None, **options: object) -> None:
        cuda = self.cuda
        assert not any(stream.graph for stream in cuda.streams) and not self.is_ended
        self.stream, self.device = cuda.streams[cuda.device], cuda.device
        assert self.stream is not cuda.default_streams[cuda.device] and self.stream.device.index == cuda.device
        self.pool = cuda.graph_pool_handle() if pool is None else pool
        cuda.hold(self.device, self.pool)
        assert (self.device, self.pool) not in cuda.underway
        cuda.underway.add((self.device, self.pool))
        cuda.waiting_generators.add(self.device)
        self.stream.graph = self
        cuda.log.append(("capture", self.device, self.stream))

    def capture_end(self) -> None:
        assert self.cuda.streams[self.cuda.device] is self.stream
        self.stream.graph = None
        if self.is_spoilt:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.end_allocation(self.device, self.pool)
        self.cuda.waiting_generators.discard(self.device)
        self.is_ended, self.is_ready = True, not self.keep_graph

    def instantiate(self) -> None:
        self.is_ready = True

    def raw_cuda_graph(self) -> int:
        assert self.keep_graph and self.is_ended
        self.cuda.listed = self
        return 1 << 40

    def replay(self) -> None:
        assert self.is_ready
        self.cuda.log.append(("replay", self.cuda.device, self.cuda.streams[self.cuda.device]))

    def reset(self) -> None:
        if self.is_ended:
            self.cuda.release_pool(self.device, self.pool)
        self.is_ended = self.is_ready = False


class FakeCuda:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = 0
        self.streams: list[Stream] = []
        self.streams = [Stream(self, index) for index in range(2)]
        self.default_streams = [*self.streams]
        self.pools: dict[tuple[int, Any], int] = {}  # how many graphs hold each
        self.underway: set[tuple[int, Any]] = set()
        self.waiting_generators: set[int] = set()
        self.log: list[tuple[str, int, Stream]] = []
        self.listed: Graph | None = None
        self._handles = itertools.count(1)
        for name, value in {
            "Stream": lambda device=None: Stream(self, device),
            "stream": lambda stream: StreamContext(self, stream),
            "current_stream": lambda device=None: self.streams[self.index_of(device)],
            "current_device": lambda: self.device,
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "CUDAGraph": lambda keep_graph=False: Graph(self, keep_graph),
            "graph_pool_handle": self.graph_pool_handle,
            "default_stream": lambda device=None: self.default_streams[self.index_of(device)],
            "device_count": lambda: len(self.streams),
            "is_initialized": lambda: True,
            "synchronize": lambda: None,
            "empty_cache": self._empty_cache,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name, value in {
            "_cuda_clearCublasWorkspaces": lambda: None,
            "_host_emptyCache": lambda: None,
            "_cuda_endAllocateToPool": self.end_allocation,
            "_cuda_releasePool": self.release_pool,
        }.items():
            monkeypatch.setattr(torch._C, name, value, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
        monkeypatch.setattr(torch, "empty", self._empty)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: self)
        monkeypatch.setattr(recording, "_streams", {})
        monkeypatch.setattr(recording, "_failed", [])

    def index_of(self, device: Any) -> int:
        index = device if device is None or isinstance(device, int) else torch.device(device).index
        return self.device if index is None else int(index)

    def launch(self, index: int, kind: int = KERNEL) -> None:
        """What torch does for a tensor on a device: the device's current stream takes the work."""
        stream = self.streams[index]
        self.log.append(("launch", index, stream))
        if stream.graph is not None:
            stream.graph.nodes.append(kind)

    def read_on_the_host(self) -> None:
        for stream in self.streams:
            if stream.graph is not None:
                stream.graph.is_spoilt = True
                raise RuntimeError("operation not permitted when stream is capturing")

    def draw(self, index: int) -> None:
        """A draw from the generator of a device outside of captures."""
        assert index not in self.waiting_generators
        self.launch(index)

    def graph_pool_handle(self) -> Any:
        return next(self._handles), 0

    def hold(self, index: int, pool: Any) -> None:
        assert self.pools.get((index, pool)) != 0, "a pool that was given up takes no graph"
        self.pools[index, pool] = self.pools.get((index, pool), 0) + 1

    def end_allocation(self, index: int, pool: Any) -> None:
        if (index, pool) not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove((index, pool))

    def release_pool(self, index: int, pool: Any) -> None:
        self.pools[index, pool] -= 1
        assert self.pools[index, pool] >= 0

    def cuGraphGetNodes(self, handle: ctypes.c_void_p, nodes: Any, count: Any) -> int:
        assert handle.value == 1 << 40 and self.listed is not None
        count._obj.value = len(self.listed.nodes)
        for i in range(len(nodes or ())):
            nodes[i] = (1 << 41) + i
        return 0

    def cuGraphNodeGetType(self, node: ctypes.c_void_p, kind: Any) -> int:
        assert self.listed is not None and node.value is not None
        kind._obj.value = self.listed.nodes[node.value - (1 << 41)]
        return 0

    def _exchange_device(self, index: int) -> int:
        before, self.device = self.device, index
        return before

    def _empty_cache(self) -> None:
        assert not self.underway

    def _empty(self, size: int, device: torch.device) -> Any:
        class Cell:
            def zero_(cell) -> None:
                self.launch(device.index)

        return Cell()
