"""What launches ask of a GPU: how many clusters fit, and the shared memory of a kernel, each once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pygen.ops import sample
from tests.helpers import cuda_host
from tests.helpers.logits import make_logits

HOPPER, AMPERE = (9, 0, 132, 2048, 232448), (8, 0, 108, 2048, 166912)
# A sixteenth of a GPU with room for 2, 4 and 8 clusters of 8, 4 and 2 blocks.
SMALL = (9, 0, 16, 2048, 232448)
VOCAB = 32768  # the least that 8 blocks share
GREEDY: dict[str, Any] = {"do_sample": False}
# Reads the row again, which a cluster keeps in shared memory.
WIDE: dict[str, Any] = {"top_p": 0.9, "temperature": 3.0, "seed": 1}


@pytest.fixture
def host() -> Iterator[Any]:
    host = cuda_host.host()
    host.set_device(*SMALL)
    yield host
    host.set_device(*HOPPER)


def check(backend: str, rows: int, vocab_size: int = VOCAB, **knobs: Any) -> None:
    logits = make_logits("spread", rows, vocab_size, dtype=torch.bfloat16)
    wanted = sample(logits, **knobs, backend="cpu")
    assert sample(logits, **knobs, backend=backend).token_ids.equal(wanted.token_ids)


@pytest.mark.parametrize(
    ("fitting", "clusters"),
    [
        (None, {2: 8, 3: 4, 5: 2, 9: 1}),
        # Less than the arithmetic of groups says.
        ({8: 1, 4: 1, 2: 2}, {1: 8, 2: 2, 3: 1}),
        # A partition refuses what a whole GPU runs.
        ({8: 0}, {1: 4, 5: 2}),
        ({8: 0, 4: 0}, {1: 2}),
        ({8: 0, 4: 0, 2: 0}, {1: 1}),
    ],
)
def test_rows_get_the_clusters_that_fit(
    backend: str, host: Any, fitting: dict[int, int] | None, clusters: dict[int, int]
) -> None:
    if fitting is not None:
        host.set_clusters(fitting)
    for rows, cluster in clusters.items():
        check(backend, rows, **GREEDY)
        assert host.last_launch()["cluster"] == cluster, rows


@pytest.mark.parametrize("fitting", [{}, {8: 0}, {8: 0, 4: 0, 2: 0}])
def test_a_row_stays_in_shared_memory_only_where_its_cluster_fits(
    backend: str, host: Any, fitting: dict[int, int]
) -> None:
    host.set_clusters(fitting)
    check(backend, 1, 151936, **WIDE)
    assert fitting.get(host.last_launch()["cluster"], 1) > 0


def test_a_gpu_is_asked_once(backend: str, host: Any) -> None:
    counts = []
    for _ in range(2):
        host.set_device(*SMALL)
        check(backend, 1, **GREEDY)
        counts.append(host.asked())
        assert counts[-1] == {"clusters": 3, "shared": 1}
        check(backend, 2, **GREEDY)
        assert host.asked() == counts[-1]


def test_shared_memory_of_a_kernel_only_grows(backend: str, host: Any) -> None:
    host.set_device(*AMPERE)
    allowed = 48 * 1024
    for vocab_size in (1000, 400000, 1000, 1000000, 400000):
        before = host.asked()["shared"]
        check(backend, 1, vocab_size, **GREEDY)
        shared = host.last_launch()["shared"]
        assert host.asked()["shared"] - before == (shared > allowed)
        allowed = max(allowed, shared)
    assert allowed > 48 * 1024 and host.asked()["clusters"] == 0


def test_threads_without_the_interpreter_lock(backend: str, host: Any) -> None:
    draw = random.Random(1)
    sizes = [[draw.randrange(1, SMALL[-1]) for _ in range(2000)] for _ in range(4)]
    assert host.allow_in_threads(sizes) == 0
    # A launch that needs less than an earlier one asks nothing: of n random sizes, about ln n are the largest so far.
    assert 1 <= host.asked()["shared"] < 50
