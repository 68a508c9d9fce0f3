"""sample: hand-checked races, noise word for word, and every backend against the reference and transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pygen import rng
from pygen.ops import RowStatus, SampleOutput, TopLogprobs, process_logits, sample
from tests.helpers.draws import assert_same_tokens
from tests.helpers.extra_backends import EMULATED
from tests.helpers.hand_rows import RACES, Race
from tests.helpers.logits import KINDS, MANY_ROWS, SEVERAL_ROWS, VOCAB_SIZES, make_history, make_logits, strided_rows

SETTINGS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-3},
    "eta_cutoff": {"eta_cutoff": 3e-3},
    "top_h": {"top_h": 0.6},
    "top_n_sigma": {"top_n_sigma": 2.0},
    "common": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}


def noise_of(seed: int, rows: int, vocab_size: int, step: int = 0) -> torch.Tensor:
    return rng.philox_exponential(rng.row_seeds(seed, rows), torch.full((rows,), step), vocab_size)


@pytest.mark.parametrize("race", RACES, ids=[race.fact for race in RACES])
def test_hand_checked_race(backend: str, race: Race) -> None:
    logits, noise = torch.tensor([race.logits]), torch.tensor([race.noise], dtype=torch.float32)
    assert sample(logits.float(), noise=noise, **race.knobs, backend=backend).token_ids.tolist() == [race.token_id]


@pytest.mark.parametrize("logprobs", [0, 2])
def test_status(backend: str, logprobs: int) -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[1, 2, 3], [1, nan, 3], [-inf, -inf, -inf], [1, inf, 3], [nan, inf, 3], [-inf, 0, -inf]])
    out = sample(logits, seed=1, logprobs=logprobs, top_k=2, backend=backend)
    names = [RowStatus(value).name for value in out.status.tolist()]
    assert names == ["OK", "NAN", "ALL_MASKED", "POS_INF", "NAN", "OK"]
    assert out.token_ids[1:].tolist() == [2, 0, 1, 1, 1]
    if out.logprobs is not None and out.top_logprobs is not None:
        assert out.logprobs.isnan().tolist() == [False, True, True, True, True, False]
        assert out.top_logprobs.token_ids.tolist()[1:] == [[-1, -1]] * 4 + [[1, -1]]
        assert out.top_logprobs.logprobs[1:5].isnan().all()
        assert out.top_logprobs.logprobs[5].tolist() == [0.0, -inf]


@pytest.mark.parametrize("sampled", [True, False])
def test_a_temperature_over_which_scores_overflow(backend: str, sampled: bool) -> None:
    """Such a temperature keeps only the best token. So does a greedy row, which does not divide."""
    logits = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    knobs = {"temperature": torch.tensor([1e-41, 1e-41])} if sampled else {"do_sample": False, "temperature": 1e-41}
    out = sample(logits, seed=1, **knobs, backend=backend)
    assert out.token_ids.tolist() == [1, 0] and out.status.tolist() == [0, 0]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_given_noise_and_philox_equal_the_reference(kernel_backend: str, vocab_size: int, setting: str) -> None:
    rows, knobs = (SEVERAL_ROWS if vocab_size < 1000 else 1), SETTINGS[setting]
    for kind in KINDS if vocab_size < 1000 else KINDS[:2]:
        logits = make_logits(kind, rows, vocab_size, seed=5, dtype=torch.bfloat16 if kind == "ties" else torch.float32)
        scores = process_logits(logits, **knobs, backend=kernel_backend)
        noise = noise_of(11, rows, vocab_size, step=4)
        expected = sample(logits, noise=noise, **knobs, backend="torch").token_ids
        given = sample(logits, noise=strided_rows(noise), **knobs, backend=kernel_backend).token_ids
        assert_same_tokens(given, expected, scores, noise)
        drawn = sample(logits, seed=11, step=4, **knobs, backend=kernel_backend).token_ids
        assert_same_tokens(drawn, expected, scores, noise)


@pytest.mark.parametrize("rows", [0, 1, 3, MANY_ROWS])
def test_rows(backend: str, rows: int) -> None:
    for knobs in SETTINGS.values():
        out = sample(make_logits("normal", rows, 70), seed=2, logprobs=2, **knobs, backend=backend)
        assert out.token_ids.shape == out.status.shape == (rows,)
        assert ((out.token_ids >= 0) & (out.token_ids < 70)).all()
        assert out.top_logprobs is not None and out.top_logprobs.token_ids.shape == (rows, 2)


def test_seeds_as_int_list_and_tensor(backend: str) -> None:
    logits = make_logits("normal", 4, 500)
    words = [rng.row_seed(9, row) for row in range(4)]
    expected = sample(logits, seed=9, backend=backend).token_ids
    assert sample(logits, seed=words, backend=backend).token_ids.equal(expected)
    assert sample(logits, seed=rng.row_seeds(9, 4), backend=backend).token_ids.equal(expected)
    assert not sample(logits, seed=10, backend=backend).token_ids.equal(expected)
    assert not sample(logits, seed=9, step=1, backend=backend).token_ids.equal(expected)


def test_a_missing_seed_comes_from_the_generator(backend: str) -> None:
    logits = make_logits("normal", 4, 500)
    draws = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        draws.append([sample(logits, generator=generator, backend=backend).token_ids for _ in range(2)])
        torch.manual_seed(8)
        draws[-1].append(sample(logits, backend=backend).token_ids)
    assert torch.stack(draws[0]).equal(torch.stack(draws[1]))
    assert not draws[0][0].equal(draws[0][1])
    before = torch.get_rng_state()
    sample(logits, do_sample=False, backend=backend)
    assert torch.get_rng_state().equal(before)


def test_steps_per_row(backend: str) -> None:
    logits = make_logits("normal", 5, 200)
    steps = torch.tensor([0, 7, 2**31, 2**32 - 1, 3])
    seeds = rng.row_seeds(1, 5)
    out = sample(logits, seed=seeds, step=steps, backend=backend).token_ids
    for row in range(5):
        alone = sample(logits[row : row + 1], seed=seeds[row : row + 1], step=int(steps[row]), backend=backend)
        assert alone.token_ids.tolist() == [out[row]]


@pytest.mark.parametrize("setting", ["neutral", "common", "top_p"])
@pytest.mark.parametrize("vocab_size", [50, 5003 if EMULATED else 20000])
def test_a_row_does_not_depend_on_its_batch(kernel_backend: str, vocab_size: int, setting: str) -> None:
    knobs = SETTINGS[setting]
    rows = SEVERAL_ROWS + 4
    logits, seeds = make_logits("normal", rows, vocab_size), rng.row_seeds(4, rows)
    expected = sample(logits, seed=seeds, logprobs=3, **knobs, backend=kernel_backend)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    permuted = sample(logits[order], seed=seeds[order], logprobs=3, **knobs, backend=kernel_backend)
    assert permuted.token_ids.equal(expected.token_ids[order])
    for row in range(rows):
        alone = sample(logits[row : row + 1], seed=seeds[row : row + 1], **knobs, backend=kernel_backend)
        assert alone.token_ids.tolist() == [expected.token_ids[row]]
    bad = torch.cat([torch.full((2, vocab_size), math.nan), logits])
    mates = sample(bad, seed=torch.cat([seeds[:2], seeds]), **knobs, backend=kernel_backend)
    assert mates.token_ids[2:].equal(expected.token_ids)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_threads_do_not_matter(cpu_backend: str, rows: int) -> None:
    threads = torch.get_num_threads()
    logits = make_logits("normal", rows, 60000)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            for knobs in SETTINGS.values():
                out = sample(logits, seed=3, logprobs=2, **knobs, backend=cpu_backend)
                plain = sample(logits, seed=3, **knobs, backend=cpu_backend)
                same = sample(
                    logits, rng="torch", generator=torch.Generator().manual_seed(1), **knobs, backend=cpu_backend
                )
                results.append((count, out.token_ids, plain.token_ids, same.token_ids))
        finally:
            torch.set_num_threads(threads)
    size = len(SETTINGS)
    for first, *others in zip(results[:size], results[size : 2 * size], results[2 * size :], strict=True):
        assert all(torch.stack(first[1:]).equal(torch.stack(other[1:])) for other in others)


@pytest.mark.parametrize("setting", SETTINGS)
def test_logprobs(backend: str, setting: str) -> None:
    for kind in KINDS:
        logits = make_logits(kind, 5, 200, seed=2)
        knobs = {**SETTINGS[setting], "do_sample": torch.tensor([True, True, False, True, True])}
        out = sample(logits, seed=5, logprobs=7, **knobs, backend=backend)
        assert out.logprobs is not None and out.top_logprobs is not None
        scores = process_logits(logits, **knobs, backend=backend)
        expected = torch.log_softmax(scores.double(), dim=1).float()
        torch.testing.assert_close(out.logprobs, expected.gather(1, out.token_ids[:, None])[:, 0], rtol=1e-5, atol=1e-6)
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :7]
        removed = scores.gather(1, order) == -math.inf
        assert out.top_logprobs.token_ids.equal(order.masked_fill(removed, -1))
        torch.testing.assert_close(out.top_logprobs.logprobs, expected.gather(1, order), rtol=1e-5, atol=1e-6)
        assert out.token_ids.equal(sample(logits, seed=5, **knobs, backend=backend).token_ids)


def test_more_logprobs_than_tokens(backend: str) -> None:
    top = sample(torch.tensor([[0.0, 0.0]]), seed=1, logprobs=4, backend=backend).top_logprobs
    assert top is not None and top.token_ids.tolist() == [[0, 1, -1, -1]]
    assert top.logprobs.tolist()[0][2:] == [-math.inf, -math.inf]


def test_out_is_written_and_returned(backend: str) -> None:
    logits = make_logits("normal", 3, 50)
    top = TopLogprobs(torch.empty(3, 2, dtype=torch.int64), torch.empty(3, 2))
    out = SampleOutput(torch.empty(3, dtype=torch.int64), torch.empty(3), top, torch.empty(3, dtype=torch.int32))
    assert sample(logits, seed=3, logprobs=2, backend=backend, out=out) is out
    fresh = sample(logits, seed=3, logprobs=2, backend=backend)
    assert fresh.top_logprobs is not None and fresh.logprobs is not None and out.logprobs is not None
    assert out.token_ids.equal(fresh.token_ids) and out.status.equal(fresh.status)
    assert out.logprobs.equal(fresh.logprobs) and top.token_ids.equal(fresh.top_logprobs.token_ids)


def test_inputs_are_not_modified(backend: str) -> None:
    tensors: dict[str, Any] = {
        "logits": make_logits("normal", 3, 40),
        "input_ids": make_history(3, 9, 40),
        "bias": make_logits("normal", 3, 40, seed=9),
        "suppress": torch.tensor([1, 2]),
        "token_bitmask": torch.tensor([-2, 255], dtype=torch.int32),
        "temperature": torch.tensor([0.5, 0.0, 1.0]),
        "seed": torch.tensor([1, 2, 3]),
        "step": torch.tensor([0, 1, 2]),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    sample(**tensors, repetition_penalty=1.2, top_p=0.5, logprobs=2, backend=backend)
    assert all(tensor.equal(before[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strided_rows_give_the_same(backend: str, dtype: torch.dtype) -> None:
    for vocab_size in (1, 65, 300):
        logits = make_logits("normal", SEVERAL_ROWS, vocab_size, dtype=dtype)
        for knobs in SETTINGS.values():
            expected = sample(logits, seed=3, **knobs, backend=backend).token_ids
            assert sample(strided_rows(logits), seed=3, **knobs, backend=backend).token_ids.equal(expected)
