"""sample(output_kept=True): the kept tokens are the survivors of the filters, on every backend."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import DecodeState, KeptRows, KeptTokens, SampleOutput, prepare_sample, process_logits, sample
from tests.helpers.extra_backends import EMULATED
from tests.helpers.kept_sets import assert_same_scores, unfiltered
from tests.helpers.logits import KINDS, SEVERAL_ROWS, make_history, make_logits

INF = math.inf
VOCAB_SIZES = (7, 5003) if EMULATED else (1, 7, 65, 5003, 40000)
SETTINGS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "flat top_p": {"top_p": 0.97, "temperature": 3.0},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-3},
    "eta_cutoff": {"eta_cutoff": 3e-3},
    "top_h": {"top_h": 0.6},
    "top_n_sigma": {"top_n_sigma": 2.0},
    "several": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "at least": {"temperature": 0.7, "min_p": 0.9, "min_tokens_to_keep": 3},
}


def kept_of(output: SampleOutput) -> KeptTokens:
    assert isinstance(output.kept, KeptTokens)
    return output.kept


def ids_of(kept: KeptTokens) -> list[list[int]]:
    bounds = kept.offsets.tolist()
    return [kept.token_ids[begin:end].tolist() for begin, end in itertools.pairwise(bounds)]


def scores_of(kept: KeptTokens, before_filters: Tensor) -> Tensor:
    """Returns the scores of the kept tokens, and -inf for the others."""
    scores = torch.full_like(before_filters, -INF)
    for row, ids in enumerate(ids_of(kept)):
        assert ids == sorted(set(ids))
        scores[row, ids] = before_filters[row, ids]
    return scores


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_kept_tokens_are_the_survivors(backend: str, vocab_size: int, setting: str) -> None:
    rows, knobs = (SEVERAL_ROWS if vocab_size < 1000 else 2), SETTINGS[setting]
    for kind in KINDS:
        logits = make_logits(kind, rows, vocab_size, seed=3, dtype=torch.bfloat16 if kind == "ties" else torch.float32)
        expected = process_logits(logits, **knobs, backend="torch")
        before_filters = process_logits(logits, **unfiltered(knobs), backend="torch")
        out = sample(logits, seed=2, **knobs, output_kept=True, kept_limit=vocab_size, backend=backend)
        kept = kept_of(out)
        assert kept.complete.all() and kept.token_ids.dtype is torch.int32 and kept.offsets.dtype is torch.int64
        scores = scores_of(kept, before_filters)
        assert_same_scores(scores, expected, before_filters, knobs)
        torch.testing.assert_close(kept.log_mass, scores.double().logsumexp(1).float(), rtol=1e-6, atol=2e-6)
        assert out.token_ids.equal(sample(logits, seed=2, **knobs, backend=backend).token_ids)


@pytest.mark.parametrize("vocab_size", [90, 9000])
@pytest.mark.parametrize("spread", [True, False])
def test_rows_at_the_limit(backend: str, vocab_size: int, spread: bool) -> None:
    """Ties at the boundary of top_k survive. A row that keeps more tokens than the limit stores none of them."""
    limit = 12
    logits = make_logits("normal", 4, vocab_size).clamp(max=2.0)
    for row, count in enumerate((limit - 1, limit, limit + 1, vocab_size)):
        logits[row, :: vocab_size // count if spread else 1][:count] = 3.0
    out = sample(logits, seed=1, top_k=5, logprobs=1, output_kept=True, kept_limit=limit, backend=backend)
    kept = kept_of(out)
    assert kept.complete.tolist() == [True, True, False, False]
    stored = [(logits[row] == 3).nonzero()[:, 0].tolist() for row in (0, 1)]
    assert ids_of(kept) == [*stored, [], []]
    expected = [3 + math.log(count) for count in (limit - 1, limit, limit + 1, vocab_size)]
    torch.testing.assert_close(kept.log_mass, torch.tensor(expected))
    prepared = prepare_sample(logits, seed=1, top_k=5, output_kept=True, kept_limit=limit, backend=backend)
    rows = prepared(logits).kept
    assert isinstance(rows, KeptRows) and rows.token_ids.shape == (4, limit)
    assert rows.counts.tolist() == [limit - 1, limit, limit + 1, vocab_size]


@pytest.mark.parametrize("count", [2048, 2049, 4097])
def test_more_tokens_than_a_list_of_a_kernel_holds(backend: str, count: int) -> None:
    vocab_size = 9001
    logits = make_logits("normal", 1, vocab_size) - 9
    ids = torch.arange(count) * (vocab_size // count)
    logits[0, ids] = 3.0
    kept = kept_of(sample(logits, seed=1, top_k=5, output_kept=True, kept_limit=vocab_size, backend=backend))
    assert ids_of(kept) == [ids.tolist()]
    torch.testing.assert_close(kept.log_mass, torch.tensor([3 + math.log(count)]))


def test_greedy_and_invalid_rows(backend: str) -> None:
    nan = math.nan
    logits = torch.tensor(
        [[1, 4, 3, 2], [4, 1, 4, 2], [1, nan, 3, 2], [-INF] * 4, [1, INF, 3, 2], [-INF, 2, -INF, -INF], [8, 8, 8, 8]]
    )
    temperature = torch.tensor([2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    out = sample(logits, seed=1, top_k=2, temperature=temperature, output_kept=True, backend=backend)
    kept = kept_of(out)
    assert ids_of(kept) == [[1, 2], [0], [], [], [], [1], [0]]
    assert kept.complete.all()
    expected = torch.tensor([math.log(math.exp(2.0) + math.exp(1.5)), 4, -INF, -INF, -INF, 2, 8])
    torch.testing.assert_close(kept.log_mass, expected)
    greedy = sample(logits, do_sample=False, output_kept=True, backend=backend)
    assert ids_of(kept_of(greedy)) == [[1], [0], [], [], [], [1], [0]]
    assert kept_of(greedy).log_mass.tolist() == [4, 4, -INF, -INF, -INF, 2, 8]


def test_a_row_without_a_filter_is_marked(backend: str) -> None:
    logits = make_logits("masked", 4, 3000)
    knobs: dict[str, Any] = {"top_k": [3, 0, 0, 0], "top_p": [1.0, 1.0, 0.5, 1.0], "temperature": [1.0, 1.0, 2.0, 0.0]}
    out = sample(logits, seed=3, **knobs, output_kept=True, kept_limit=100, backend=backend)
    kept = kept_of(out)
    assert kept.complete.tolist() == [True, False, True, True]
    scores = process_logits(logits, **knobs, backend="torch")
    for row in (0, 2):
        assert ids_of(kept)[row] == (scores[row] > -INF).nonzero()[:, 0].tolist()
    assert ids_of(kept)[1] == [] and ids_of(kept)[3] == [int(out.token_ids[3])]
    torch.testing.assert_close(kept.log_mass[1], logits[1].logsumexp(0))
    assert out.token_ids.equal(sample(logits, seed=3, **knobs, backend=backend).token_ids)


def test_removed_tokens_are_not_kept(backend: str) -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    call: dict[str, Any] = {"seed": 1, "output_kept": True, "backend": backend}
    allowed = torch.tensor([0b10110], dtype=torch.int32)
    kept = kept_of(sample(logits, token_bitmask=allowed, **call))
    assert ids_of(kept) == [[1, 2, 4]]
    torch.testing.assert_close(kept.log_mass, logits[:, [1, 2, 4]].logsumexp(1))
    bias = torch.tensor([0.0, 0.0, -INF, 0.0, 7.0])
    assert ids_of(kept_of(sample(logits, suppress=[0], bias=bias, top_k=2, **call))) == [[1, 4]]
    everything = kept_of(sample(logits, suppress=[0], top_k=9, **call))
    assert ids_of(everything) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("settings", [{"temperature": 1e-41}, {"temperature": 1e-3}])
def test_tiny_temperatures(backend: str, settings: dict[str, Any]) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.5], [-3.0, -3.0, -7.0, -9.0]])
    kept = kept_of(sample(logits, seed=1, top_k=3, top_p=0.9, output_kept=True, backend=backend, **settings))
    assert ids_of(kept) == [[1, 2], [0, 1]]


def test_rows_that_had_finished_keep_none(backend: str) -> None:
    vocab_size, rows = 60, 3
    state = DecodeState.create(make_history(rows, 4, vocab_size), 3, eos_token_ids=[7], pad_token_id=9)
    logits = make_logits("normal", rows, vocab_size)
    logits[1, 7] = 90.0
    prepared = prepare_sample(logits, seed=1, top_k=5, state=state, output_kept=True, kept_limit=8, backend=backend)
    counts = []
    for step in range(3):
        kept = prepared(logits, step=step).kept
        assert isinstance(kept, KeptRows)
        counts.append(kept.counts.tolist())
        assert (kept.log_mass == -INF).tolist() == (kept.counts == 0).tolist()
        for row, ids in enumerate(ids_of(kept.compressed())):
            assert ids in ([], logits[row].topk(5).indices.sort().values.tolist())
    assert counts == [[5, 5, 5], [5, 0, 5], [5, 0, 5]]


def test_results_are_written_into_out(backend: str) -> None:
    logits = make_logits("normal", 3, 50)
    kept = KeptRows(torch.empty(3, 9, dtype=torch.int32), torch.empty(3, dtype=torch.int32), torch.empty(3))
    out = SampleOutput(torch.empty(3, dtype=torch.int64), None, None, torch.empty(3, dtype=torch.int32), kept)
    call: dict[str, Any] = {"seed": 3, "top_k": 6, "output_kept": True, "kept_limit": 9, "backend": backend}
    assert sample(logits, **call, out=out) is out
    for ours, wanted in zip(kept.compressed(), kept_of(sample(logits, **call)), strict=True):
        assert ours.equal(wanted)


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_rows(backend: str, rows: int) -> None:
    logits = make_logits("normal", rows, 30)
    kept = kept_of(sample(logits, seed=1, top_k=4, output_kept=True, backend=backend))
    assert ids_of(kept) == logits.topk(4).indices.sort().values.tolist() and len(kept.token_ids) == 4 * rows
    assert kept.log_mass.shape == kept.complete.shape == (rows,)
    per_row = kept_of(sample(logits, seed=1, top_k=[4] * rows, output_kept=True, backend=backend))
    assert per_row.offsets.equal(kept.offsets) and per_row.token_ids.equal(kept.token_ids)
