"""token_logprobs: hand-checked rows, then every backend against log_softmax in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pygen.ops import RowStatus, TokenLogprobs, TopLogprobs, token_logprobs
from tests.helpers.faults import Fault, fault, plant
from tests.helpers.logits import KINDS, VOCAB_SIZES, make_logits, strided_rows

INF, NAN = math.inf, math.nan
# exp is 1, 2, 4, 1, removed: probabilities 1/8, 1/4, 1/2, 1/8, 0.
EIGHTHS = [0.0, math.log(2), math.log(4), 0.0, -INF]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def check_by_hand(backend: str) -> None:
    logits = torch.tensor([EIGHTHS, [7.0, -INF, -INF, -INF, -INF]])
    output = token_logprobs(logits, torch.tensor([[2, 0, 4], [0, 1, 0]]), top=3, backend=backend)
    assert_near(output.logprobs.exp(), torch.tensor([[1 / 2, 1 / 8, 0], [1, 0, 1]]))
    assert output.status.tolist() == [RowStatus.OK] * 2
    assert output.top_logprobs is not None
    assert output.top_logprobs.token_ids.tolist() == [[2, 1, 0], [0, -1, -1]]
    assert_near(output.top_logprobs.logprobs.exp(), torch.tensor([[1 / 2, 1 / 4, 1 / 8], [1, 0, 0]]))
    assert output.top_logprobs.logprobs[1].tolist() == [0, -INF, -INF]

    outside = token_logprobs(logits[:1], torch.tensor([[-1, 5, -100, 2**62, 1]]), backend=backend)
    assert_near(outside.logprobs.exp(), torch.tensor([[NAN, NAN, NAN, NAN, 1 / 4]]))
    assert outside.status.tolist() == [RowStatus.OK] and outside.top_logprobs is None

    bad = torch.tensor([[1, NAN, 3], [1, INF, 3], [-INF, -INF, -INF], [NAN, INF, 3], [1, 2, -INF]])
    output = token_logprobs(bad, torch.tensor([0, 1, 2, 0, 2]), top=1, backend=backend)
    assert [RowStatus(value).name for value in output.status.tolist()] == ["NAN", "POS_INF", "ALL_MASKED", "NAN", "OK"]
    assert output.logprobs.isnan().tolist() == [True] * 4 + [False] and output.logprobs[4] == -INF
    assert output.top_logprobs is not None
    assert output.top_logprobs.token_ids.tolist() == [[-1]] * 4 + [[1]]
    assert output.top_logprobs.logprobs.isnan().flatten().tolist() == [True] * 4 + [False]


def test_by_hand(backend: str) -> None:
    check_by_hand(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_log_softmax(backend: str, vocab_size: int, dtype: torch.dtype) -> None:
    small = vocab_size < 1000
    rows = 9 if small else 2
    for kind in KINDS if small else KINDS[:2]:
        logits = make_logits(kind, rows, vocab_size, seed=3, dtype=dtype)
        wanted = torch.log_softmax(logits.double(), dim=1).float()
        ids = torch.randint(vocab_size, (rows, 5), generator=torch.Generator().manual_seed(1))
        order = torch.sort(logits.float(), dim=1, descending=True, stable=True).indices
        # Triton's interpreter takes half a minute for a long list of a large row.
        long = (2000,) if small or backend != "triton" else ()
        for top in (0, 1, 20, *long) if small else (0, 20, *long):
            output = token_logprobs(strided_rows(logits), ids, top=top, backend=backend)
            assert_near(output.logprobs, wanted.gather(1, ids))
            assert not output.status.any()
            if output.top_logprobs is None:
                assert top == 0
                continue
            finite = (logits != -INF).sum(1, keepdim=True)
            there, count = torch.arange(top) < finite, min(top, vocab_size)
            expected = torch.full((rows, top), -1).masked_scatter(there, order[:, :count][there[:, :count]])
            assert output.top_logprobs.token_ids.equal(expected)
            values = wanted.gather(1, expected.clamp(min=0)).masked_fill(~there, -INF)
            assert_near(output.top_logprobs.logprobs, values)


def test_ties_of_the_best_go_to_the_lowest_ids(backend: str) -> None:
    logits = torch.zeros(1, 1000)
    logits[0, [990, 500, 7]] = 1.0
    for top, expected in ((2, [7, 500]), (5, [7, 500, 990, 0, 1])):
        best = token_logprobs(logits, torch.tensor([0]), top=top, backend=backend).top_logprobs
        assert best is not None and best.token_ids.tolist() == [expected]


def test_shapes(backend: str) -> None:
    logits = make_logits("normal", 4, 70)
    wanted = logits.log_softmax(1)
    ids = torch.tensor([3, 9, 69, 0])
    assert_near(token_logprobs(logits, ids, backend=backend).logprobs, wanted.gather(1, ids[:, None])[:, 0])
    apart = torch.stack([ids, ids + 100], dim=1)[:, 0]
    assert_near(token_logprobs(logits, apart, backend=backend).logprobs, wanted.gather(1, ids[:, None])[:, 0])
    assert token_logprobs(logits, ids[:, None], backend=backend).logprobs.shape == (4, 1)
    nothing = token_logprobs(logits, torch.empty(4, 0, dtype=torch.int64), top=1, backend=backend)
    assert nothing.logprobs.shape == (4, 0) and nothing.top_logprobs is not None
    assert nothing.top_logprobs.token_ids.equal(logits.argmax(1, keepdim=True))
    empty = token_logprobs(logits[:0], ids[:0], top=2, backend=backend)
    assert empty.logprobs.shape == (0,) and empty.top_logprobs is not None
    assert empty.top_logprobs.token_ids.shape == (0, 2)


def test_more_rows_than_a_grid_has_in_one_dimension(kernel_backend: str) -> None:
    rows = 70_000 if kernel_backend == "cpu" else 300
    logits = make_logits("normal", rows, 3)
    ids = torch.arange(rows) % 3
    wanted = logits.double().log_softmax(1).float().gather(1, ids[:, None])[:, 0]
    assert_near(token_logprobs(logits, ids, backend=kernel_backend).logprobs, wanted)


def test_a_row_does_not_depend_on_the_others(backend: str) -> None:
    logits = make_logits("spread", 5, 50257)
    ids = torch.tensor([1, 50256, 3, 4, 5])
    whole = token_logprobs(logits, ids, top=3, backend=backend)
    alone = [token_logprobs(logits[i : i + 1], ids[i : i + 1], top=3, backend=backend) for i in range(5)]
    assert whole.logprobs.equal(torch.cat([output.logprobs for output in alone]))
    assert whole.top_logprobs is not None
    for mine, i in zip(whole.top_logprobs, range(2), strict=True):
        assert mine.equal(torch.cat([output.top_logprobs[i] for output in alone if output.top_logprobs is not None]))


def test_out_and_inputs(backend: str) -> None:
    logits, ids = make_logits("normal", 3, 40).requires_grad_(), torch.tensor([[1, 2], [3, 4], [5, 6]])
    before = logits.detach().clone()
    top = TopLogprobs(torch.empty(3, 2, dtype=torch.int64), torch.empty(3, 2))
    out = TokenLogprobs(torch.empty(3, 2), top, torch.empty(3, dtype=torch.int32))
    assert token_logprobs(logits, ids, top=2, backend=backend, out=out) is out
    fresh = token_logprobs(logits, ids, top=2, backend=backend)
    assert fresh.top_logprobs is not None and not fresh.logprobs.requires_grad
    assert out.logprobs.equal(fresh.logprobs) and out.status.equal(fresh.status)
    assert top.token_ids.equal(fresh.top_logprobs.token_ids) and top.logprobs.equal(fresh.top_logprobs.logprobs)
    assert logits.equal(before) and ids.tolist() == [[1, 2], [3, 4], [5, 6]]


REFERENCE, SAMPLE = "pygen.reference.token_logprobs", "pygen.reference.sample"

FAULTS = [
    fault("not normalised", REFERENCE, ("torch.log_softmax(scores.double(), dim=1).float()", "scores")),
    fault("ids outside take the last", REFERENCE, ("(ids >= 0) & (ids < vocab_size)", "ids >= 0")),
    fault("ids outside take the first", REFERENCE, ("(ids >= 0) & (ids < vocab_size)", "ids < vocab_size")),
    fault("NaN is +inf", REFERENCE, ("status[largest.isnan()] = RowStatus.NAN", "")),
    fault("+inf is ok", REFERENCE, ("status[largest == math.inf] = RowStatus.POS_INF", "")),
    fault("all masked is ok", REFERENCE, ("status[largest == -math.inf] = RowStatus.ALL_MASKED", "")),
    fault("removed tokens among the best", SAMPLE, ("scores.gather(1, order) == -math.inf, -1", "scores == 7, -1")),
    fault("worst first", SAMPLE, ("dim=1, descending=True, stable", "dim=1, stable")),
    fault("bad rows have a best", SAMPLE, ("top_logprobs[invalid], top_ids[invalid] = math.nan, -1", "")),
]


@pytest.mark.parametrize("planted", FAULTS, ids=[planted.name for planted in FAULTS])
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, planted: Fault) -> None:
    plant(monkeypatch, planted, [SAMPLE, REFERENCE])
    with pytest.raises((AssertionError, RuntimeError)):
        check_by_hand("torch")
