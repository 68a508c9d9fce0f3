"""The runtime that executes CUDA kernels on the CPU computes correctly and reports every planted mistake."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import cuda_host

RUN = """
import json, sys, time
from tests.helpers import cuda_host
test, host = cuda_host.load("_self_test", "_self_test"), cuda_host.host("_self_test")
results = {}
for name in sys.argv[2:]:
    host.seed_order(int(sys.argv[1]))
    begin = time.perf_counter()
    values = test.run(name)
    results[name] = {"values": values, "failures": host.take_failures(), "seconds": time.perf_counter() - begin}
print(json.dumps(results))
"""

LANES = range(32)
# The first words of each kernel's output.
COMPUTED: dict[str, list[int]] = {
    "indices": [3_070_000 + i for i in range(210)] + [0],
    "block_barriers": [(63 - i) ** 2 for i in range(64)] + [10 * 64, 64, 0, 64, 0],
    "shuffles": [
        *(1 for _ in LANES),
        *(-(i // 8 * 8 + 3) for i in LANES),
        *(max(i - 2, i % 2 if i < 2 else 0) for i in LANES),
        *(i + 4 if i % 16 < 12 else i for i in LANES),
        *(i ^ 5 for i in LANES),
        *(i ^ 16 for i in LANES),
    ],
    "votes": [
        *(0b1010 if i < 4 else 0b110000 for i in LANES),
        *(0x10001 << i % 16 for i in LANES),
        *(1, 0, 1, 0, 2**32 - 1, 1, 0, 0),
    ],
    "reductions": [-16, -16, 15, 2**32 - 1, 1, 2**31, 0, 2**32 - 1, 2**32 - 1],
    "bits": [
        *(8, 64, 0, 4, 41, 32, 31, 64, 63, 2**31, 0x3F800000, 2, -(2**31), 0x3FF0000000000000, 0, 2**32 - 1, 2, 3),
        *(-5, 1),
    ],
    "shared_atomics": [127 * 64, 255, 127, -127, 7, 128, 64],
    "global_atomics": [
        *(255 * 128, 255, 0, 255, 2**32 - 255, 0, 256 << 32),
        *(None, 0x43800000, 2**32 - 256),  # type: ignore[list-item]
    ],
    "clusters": [
        100 * (block // 4 * 4 + (block + 1) % 4) + 31 - i + (1_280_000 if block % 4 == 0 else 0)
        for block in range(8)
        for i in LANES
    ],
    "clusters_of_one": [100 * block + 31 - i + 320_000 for block in range(2) for i in LANES],
    "cluster_halves": [1000 + 100 * (block ^ 1) + 31 - i + 100 * block + i for block in range(4) for i in LANES],
    "vectors_and_bytes": [0x03020100, *(3 * i + 1 for i in LANES)],
    "memory_twice": [31 - i - i // 2 for i in LANES],
    "warp_order": [(i ^ 1) + 10 * (i ^ 2) for i in LANES],
    "dependent": [1, 4],
    "after_squares": [*(i * i for i in LANES), *((31 - i) ** 2 + 1 for i in LANES)],
    "many_barriers": [100],
    "copies": [3 * i + 1 for i in range(64)],
    "copies_for_the_block": [sum(3 * i + 1 for i in range(64))] * 32,
}
# Number and bytes of the loads from `in`.
LOADS = {"vectors_and_bytes": (8, 128), "dependent": (4, 16), "copies": (16, 256), "copies_for_the_block": (16, 256)}

# The kind, and words of the report, of each mistake.
MISTAKES = {
    "barrier_of_some": ("barrier", "__syncthreads was reached by 32 of 64 threads; thread 32 of block 0 returned"),
    "barrier_after_return": ("barrier", "reached by 63 of 64 threads; thread 5 of block 0 returned"),
    "barriers_mixed": ("barrier", "came to __syncthreads"),
    "barrier_in_a_loop": ("barrier", "reached by 1 of 64 threads; thread 0 of block 0 returned"),
    "cluster_sync_of_some": ("barrier", "cluster_wait was reached by 32 of 64 threads; thread 0 of block 1 returned"),
    "cluster_sync_against_barrier": ("barrier", "where other threads of the block wait in "),
    "cluster_arrive_twice": ("barrier", "came to cluster_arrive again without cluster_wait between"),
    "cluster_wait_alone": ("barrier", "came to cluster_wait without cluster_arrive before"),
    "cluster_arrive_alone": ("barrier", "returned after cluster_arrive without cluster_wait"),
    "warp_of_some": ("warp", "__shfl_xor_sync was reached by 20 of 32 threads; thread 20 of block 0 returned"),
    "warp_after_return": ("warp", "__ballot_sync was reached by 31 of 32 threads; thread 40 of block 0 returned"),
    "warp_functions_mixed": ("warp", "thread 1 of block 0 waits in __all_sync"),
    "warp_masks_mixed": ("warp", "__syncwarp was reached by 31 of 32 threads; thread 0 of block 0 waits in __syncwarp"),
    "mask_without_caller": ("mask", "0x0000ffff is called by a lane outside of it"),
    "mask_beyond_warp": ("mask", "names lanes that a warp of 8 threads lacks"),
    "shuffle_from_outside": ("warp", "__shfl_sync reads lane 20, which does not take part"),
    "shuffle_width": ("mask", "has width 12"),
    "bounds_above": ("bounds", "writes 4 bytes at byte 128 of the 128 of shared array 0 of block rank 0"),
    "bounds_below": ("bounds", "writes 4 bytes at byte -4 of the 128 of shared array 1"),
    "bounds_of_vector": ("bounds", "writes 16 bytes at byte 112 of the 120"),
    "bounds_of_launch": ("bounds", "shared array 1 ends at byte 260, the launch asked for 256"),
    "never_taken": ("bounds", "a shared array that was not taken"),
    "unwritten": ("unwritten", "reads 4 bytes at byte 28 of the 128"),
    "unwritten_atomic": ("unwritten", "atomically updates 4 bytes at byte 0"),
    "unwritten_by_this_block": ("unwritten", "reads 4 bytes"),
    "unwritten_byte": ("unwritten", "reads 16 bytes at byte 0 of the 16"),
    "vector_misaligned": ("alignment", "reads 16 bytes at byte 8 of the 128"),
    "load_misaligned": ("alignment", "loads 16 bytes"),
    "race_writes": ("race", "wrote it at "),
    "race_write_read": ("race", "no barrier lies between"),
    "race_without_second_barrier": ("race", "no barrier lies between"),
    "race_atomic_read": ("race", "no barrier lies between"),
    "race_atomic_write": ("race", "no barrier lies between"),
    "race_peek_write": ("race", "no barrier lies between"),
    "race_bytes": ("race", "writes 1 bytes at byte 62 of the 64"),
    "race_vector": ("race", "no barrier lies between"),
    "race_of_warps": ("race", "no barrier lies between"),
    "race_in_part_of_warp": ("race", "no barrier lies between"),
    "race_after_shuffle": ("race", "no barrier lies between"),
    "race_of_blocks": ("race", "no barrier lies between"),
    "race_between_halves": ("race", "no barrier lies between"),
    "race_after_halves": ("race", "no barrier lies between"),
    "race_in_block_after_halves": ("race", "no barrier lies between"),
    "remote_before_wait": ("cluster", "the shared memory of block rank 1 before the first cluster_sync"),
    "remote_after_last_arrive": ("cluster", "which may have returned: no cluster_sync follows"),
    "remote_before_sync": ("cluster", "the shared memory of block rank 1 before the first cluster_sync"),
    "remote_without_last_sync": ("cluster", "which may have returned: no cluster_sync follows"),
    "rank_outside": ("cluster", "asks for block rank 2 of a cluster of 2"),
    "too_many_threads": ("launch", "`threads` must be in [1, 1024], got 1025"),
    "no_blocks": ("launch", "`blocks` must be in [1, 2^31), got 0"),
    "too_big_a_cluster": ("launch", "`cluster` must be in [1, 8], got 16"),
    "half_a_cluster": ("launch", "`blocks` must be a multiple of `cluster`, got 3 and 2"),
    "too_much_shared_memory": ("launch", "`shared` must be at most 232448 bytes, got 232449"),
    "dependent_without_wait": ("dependent", "returned without wait_for_previous_kernel"),
    "load_before_wait": ("dependent", "loads `in` before wait_for_previous_kernel"),
    "store_to_input": ("store", "wrote to byte 12 of `in`"),
    "copy_read_without_wait": ("pending", "reads 4 bytes at byte 0 of the 16 of shared array 0 of block rank 0"),
    "copy_read_before_its_group": ("pending", "a copy of thread 0 is in flight since "),
    "copy_outside_of_groups": ("pending", "reads 16 bytes at byte 0"),
    "copy_written_over": ("pending", "writes 4 bytes at byte 8 of the 16"),
    "copy_added_to": ("pending", "atomically updates 4 bytes at byte 12"),
    "copy_onto_copy": ("pending", "copies 16 bytes at byte 0 of the 16"),
    "copy_read_by_another": ("pending", "a copy of thread 3 is in flight since "),
    "copy_left_behind": ("pending", "returned with 2 copies that no wait_for_copies covers"),
    "copy_without_barrier": ("race", "no barrier lies between"),
    "copy_over_read": ("race", "no barrier lies between"),
    "copy_of_changing_words": ("race", "changed between this copy and the wait for it"),
    "copy_misaligned": ("alignment", "copies 16 bytes at byte 8 of the 32"),
    "copy_from_misaligned": ("alignment", "loads 16 bytes"),
    "copy_outside": ("bounds", "copies 16 bytes at byte 16 of the 16"),
    "copy_to_another_block": ("cluster", "copies into the shared memory of block rank 1"),
    "copy_before_wait_for_kernel": ("dependent", "loads `in` before wait_for_previous_kernel"),
}
WITHOUT_PLACE = ("dependent_without_wait", "cluster_arrive_alone")
# Mistakes that the sanitizers find; these end the process.
ENDS = {
    "global_bounds": "heap-buffer-overflow",
    "stack_bounds": "stack-buffer-overflow",
    "read_before_wait": r"use-after-poison[^$]*before wait_for_previous_kernel, what a kernel in front wrote",
    "write_before_wait": r"use-after-poison[^$]*before wait_for_previous_kernel, what a kernel in front wrote",
    "shift_too_far": "shift exponent 107 is too large",
    "copy_from_outside": "heap-buffer-overflow",
    "copy_from_freed_memory": "heap-use-after-free",
}
SEEDS = (1, 2, 3)
OTHERS = ("order",)


def process(seed: int, *names: str, setup: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", setup + RUN, str(seed), *names],
        capture_output=True, text=True, cwd=cuda_host.ROOT, env=cuda_host.environment(), timeout=300,
    )  # fmt: skip


def results_of(*names: str, seed: int = 1, setup: str = "") -> dict[str, Any]:
    run = process(seed, *names, setup=setup)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    cuda_host.build("_self_test")


@pytest.fixture(scope="module")
def results(built: None) -> dict[int, dict[str, Any]]:
    return {seed: results_of(*COMPUTED, *MISTAKES, *OTHERS, seed=seed) for seed in SEEDS}


def test_every_kernel_is_listed() -> None:
    script = "from tests.helpers import cuda_host; print(*cuda_host.load('_self_test', '_self_test').names())"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=cuda_host.ROOT, env=cuda_host.environment()
    )
    assert set(run.stdout.split()) == {*COMPUTED, *MISTAKES, *ENDS, *OTHERS}, run.stderr


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", COMPUTED)
def test_it_computes(name: str, seed: int, results: dict[int, dict[str, Any]]) -> None:
    result = results[seed][name]
    *values, loads, loaded_bytes, error = result["values"]
    assert (result["failures"], error) == ([], 0)
    expected = COMPUTED[name]
    assert [value for value, wanted in zip(values, expected, strict=False) if wanted is not None] == [
        wanted for wanted in expected if wanted is not None
    ]
    assert (loads, loaded_bytes) == LOADS.get(name, (0, 0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MISTAKES)
def test_it_reports(name: str, seed: int, results: dict[int, dict[str, Any]]) -> None:
    result = results[seed][name]
    kind, words = MISTAKES[name]
    assert result["values"][-1] != 0
    found = [failure for failure in result["failures"] if failure["kind"] == kind]
    assert any(words in failure["text"] for failure in found), result["failures"]
    # A race may also appear as a read of an unwritten word. No other report is allowed.
    assert {failure["kind"] for failure in result["failures"]} <= {kind, *(["unwritten"] if kind == "race" else [])}
    if kind not in ("launch", "store"):
        kernel, where = found[0]["kernel"], found[0]["where"]
        assert kernel == name and found[0]["block"] >= 0 and found[0]["thread"] >= 0
        assert re.search(r"tests/cuda_host/self_test_\w+\.cu:\d+$", where) or name in WITHOUT_PLACE


@pytest.mark.parametrize("name", ENDS)
def test_the_sanitizers_watch(name: str) -> None:
    run = process(1, name)
    assert run.returncode != 0 and re.search(ENDS[name], run.stderr), run.stderr
    assert name in run.stderr


def test_the_order_is_another_for_another_seed(results: dict[int, dict[str, Any]]) -> None:
    orders = [results[seed]["order"]["values"][1:257] for seed in SEEDS]
    assert all(sorted(order) == list(range(256)) for order in orders)
    assert len(set(map(tuple, orders))) == len(SEEDS)
    assert results_of("order", seed=SEEDS[0])["order"]["values"][1:257] == orders[0]


def test_a_device_without_clusters_refuses_them() -> None:
    setup = """
from tests.helpers import cuda_host
cuda_host.host("_self_test").set_device(8, 0, 108, 2048, 166912)
"""
    results = results_of("clusters", "clusters_of_one", setup=setup)
    assert [failure["kind"] for failure in results["clusters"]["failures"]] == ["launch"]
    assert results["clusters_of_one"]["failures"] == []


def test_barriers_are_cheap(results: dict[int, dict[str, Any]]) -> None:
    """Makes 51,200 switches between threads; each is a system call on processors other than x86-64."""
    limit = 0.1 if platform.machine() == "x86_64" else 5.0
    assert min(results[seed]["many_barriers"]["seconds"] for seed in SEEDS) < limit


def test_error_without_the_sanitizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    with pytest.raises(RuntimeError, match=r"libasan\.so is not preloaded"):
        cuda_host.load("nothing", "nothing")
    monkeypatch.setattr(cuda_host, "run", lambda *command: command[-1].partition("=")[2])
    with pytest.raises(RuntimeError, match=r"g\+\+ has no libasan\.so and no libubsan\.so"):
        cuda_host.sanitizer_libraries()
