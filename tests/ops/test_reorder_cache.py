"""reorder_cache: a hand-checked table, then every backend against a gather on a copy; the table detects mutants."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen.reference.reorder_cache as reference
from pygen.ops import reorder_cache
from pygen.ops.reorder_cache import reorder_cache_unchecked

POSITIONS = 4

# beam_idx, start, length, and the positions of every row afterwards; before, row r holds r0 r1 r2 r3.
HAND_TABLE: dict[str, tuple[list[int], Any, int | None, list[str]]] = {
    "nothing moves": ([0, 1, 2], 0, None, ["00 01 02 03", "10 11 12 13", "20 21 22 23"]),
    "dead rows get copies": ([0, 0, 0], 0, None, ["00 01 02 03", "00 01 02 03", "00 01 02 03"]),
    "from start": ([0, 0, 2], 2, None, ["00 01 02 03", "10 11 02 03", "20 21 22 23"]),
    "up to length": ([1, 1, 2], 0, 2, ["10 11 02 03", "10 11 12 13", "20 21 22 23"]),
    "an empty stretch": ([1, 2, 0], 3, 3, ["00 01 02 03", "10 11 12 13", "20 21 22 23"]),
    "a swap": ([1, 0, 2], 1, 3, ["00 11 12 03", "10 01 02 13", "20 21 22 23"]),
    "a cycle": ([1, 2, 0], 0, None, ["10 11 12 13", "20 21 22 23", "00 01 02 03"]),
    "the source moves too": ([1, 2, 2], 0, None, ["10 11 12 13", "20 21 22 23", "20 21 22 23"]),
    "a start per row": ([1, 0, 0], [3, 1, 4], None, ["00 01 02 13", "10 01 02 03", "20 21 22 23"]),
    "a cycle with starts": ([1, 2, 0], [0, 2, 3], None, ["10 11 12 13", "10 11 22 23", "20 21 22 03"]),
}


def numbered() -> Tensor:
    """Returns (3, 1, POSITIONS, 1): row and position as a two-digit number."""
    return (torch.arange(3)[:, None] * 10 + torch.arange(POSITIONS)).view(3, 1, POSITIONS, 1)


def check_hand_table(backend: str) -> None:
    for fact, (beam_idx, start, length, wanted) in HAND_TABLE.items():
        cache = numbered()
        first = torch.tensor(start) if isinstance(start, list) else start
        reorder_cache(cache, torch.tensor(beam_idx), first, length, backend=backend)
        assert [" ".join(f"{x:02d}" for x in row) for row in cache.flatten(1).tolist()] == wanted, fact


def test_hand_table(backend: str) -> None:
    check_hand_table(backend)


def gathered(cache: Tensor, beam_idx: Tensor, start: int | Tensor, length: int) -> Tensor:
    """Reorders by definition, row by row on a copy."""
    after = cache.clone()
    for row, source in enumerate(beam_idx.tolist()):
        first = start if isinstance(start, int) else int(start[row])
        after[row, :, first:length] = cache[source, :, first:length]
    return after


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda cache: cache,
    "heads inside positions": lambda cache: cache.transpose(1, 2).contiguous().transpose(1, 2),
    "rows innermost": lambda cache: cache.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    "a window": lambda cache: torch.cat([cache, cache], 2)[:, :, 1 : 1 + cache.shape[2]],
    "half a head": lambda cache: torch.cat([cache, cache], 3)[..., : cache.shape[3]],
}
MAPS: dict[str, Callable[[int], Tensor]] = {
    "any": lambda rows: torch.randint(rows, (rows,)),
    "permutation": lambda rows: torch.randperm(rows),
    "half dies": lambda rows: torch.where(torch.rand(rows) < 0.5, torch.arange(rows), torch.arange(rows) // 2 * 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MAPS)
def test_any_map_over_any_layout(backend: str, kind: str, layout: str) -> None:
    torch.manual_seed(5)
    for rows, heads, positions, head_dim in ((1, 1, 1, 1), (3, 2, 7, 5), (9, 1, 111, 3), (33, 3, 20, 16)):
        # int64, so that every element is unique.
        cache = LAYOUTS[layout](torch.randperm(rows * heads * positions * head_dim).view(rows, heads, positions, -1))
        beam_idx = MAPS[kind](rows)
        length = int(torch.randint(positions + 1, ()))
        for start in (0, int(torch.randint(length + 1, ())), torch.randint(length + 1, (rows,))):
            wanted = gathered(cache, beam_idx, start, length)
            reorder_cache(cache, beam_idx, start, length, backend=backend)
            assert cache.equal(wanted)


@pytest.mark.parametrize("kind", MAPS)
def test_a_span_replaces_start_and_length(backend: str, kind: str) -> None:
    """The span may be empty, begin past the tensor or end there."""
    torch.manual_seed(3)
    shape, length = (9, 2, 40, 3), 36
    for first, end in ((0, 40), (5, 30), (5, 39), (17, 18), (12, 12), (12, 7), (0, 0), (36, 40), (50, 60)):
        for start in (0, 4, torch.randint(20, (9,))):
            cache = torch.randperm(9 * 2 * 40 * 3).view(shape)
            beam_idx = MAPS[kind](9)
            wanted = gathered(cache, beam_idx, first + start, min(end, length))
            reorder_cache_unchecked([cache], beam_idx, start, length, torch.tensor([first, end]), backend=backend)
            assert cache.equal(wanted), (first, end, start)


def test_several_tensors_of_any_kind_at_once(backend: str) -> None:
    check_several_tensors(backend)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_several_tensors(cpu_backend: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_several_tensors(cpu_backend)
    finally:
        torch.set_num_threads(before)


def check_several_tensors(backend: str) -> None:
    torch.manual_seed(1)
    shapes_and_dtypes = [
        ((6, 2, 170, 640), torch.float32),  # many blocks
        ((6, 1, 150, 1), torch.int8),
        ((6, 3, 121, 80), torch.bfloat16),
        ((6, 1, 120, 4200), torch.float64),  # one position exceeds a block
        ((6, 2, 120, 16), torch.bool),
    ]
    caches = [(torch.rand(shape) * 100).to(dtype) for shape, dtype in shapes_and_dtypes]
    beam_idx, start = torch.tensor([3, 1, 0, 2, 2, 5]), torch.tensor([5, 0, 30, 17, 119, 2])
    wanted = [gathered(cache, beam_idx, start, 120) for cache in caches]
    reorder_cache(caches, beam_idx, start, 120, backend=backend)
    for cache, want in zip(caches, wanted, strict=True):
        assert cache.equal(want)


def test_gaps_between_elements_are_not_written(backend: str) -> None:
    memory = torch.arange(4 * 3 * 10 * 8).view(4, 3, 10, 8)
    cache = memory[:, ::2, 1:9:2, :5]
    outside = torch.ones_like(memory, dtype=torch.bool)
    outside[:, ::2, 1:9:2, :5] = False
    before = memory.clone()
    reorder_cache(cache, torch.tensor([1, 0, 0, 2]), backend=backend)
    assert cache.equal(before[[1, 0, 0, 2], ::2, 1:9:2, :5]) and memory[outside].equal(before[outside])


def test_empty_tensors_and_strided_indices(backend: str) -> None:
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        reorder_cache(torch.empty(shape), torch.arange(shape[0]).flip(0), backend=backend)
    cache, pairs = numbered(), torch.tensor([[2, 1], [1, 2], [2, 0]])
    wanted = gathered(cache, pairs[:, 0], pairs[:, 1], POSITIONS)
    reorder_cache(cache, pairs[:, 0], pairs[:, 1], backend=backend)
    assert cache.equal(wanted)


def test_leaves_of_autograd_are_written(backend: str) -> None:
    cache = torch.rand(2, 1, 3, 4).requires_grad_()
    wanted = cache.detach()[[1, 1]].clone()
    reorder_cache(cache, torch.tensor([1, 1]), backend=backend)
    assert cache.equal(wanted)


# Possible faults of a kernel; the hand-checked table must detect each.
FAULTS = {
    "start ignored": ("positions >= first[:, None]", "positions >= 0 * first[:, None]"),
    "length ignored": ("tensor[:, :, :length]", "tensor"),
    "one start for all": ("positions >= first[:, None]", "positions >= first.min() + 0 * first[:, None]"),
    "scatter instead of gather": ("used[beam_idx]", "used.index_put((beam_idx,), used)"),
    "rows one after the other": (
        "used.copy_(torch.where(moves[:, None, :, None], used[beam_idx], used))",
        "[used[r].copy_(torch.where(moves[r, :, None], used[s], used[r])) for r, s in enumerate(beam_idx)]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with open(reference.__file__) as file:
        source = file.read()
    old, new = FAULTS[fault]
    assert source.count(old) == 1
    wrong = types.ModuleType("wrong")
    exec(source.replace(old, new), wrong.__dict__)
    monkeypatch.setattr(reference, "reorder_cache", wrong.reorder_cache)
    with pytest.raises(AssertionError):
        check_hand_table("torch")
