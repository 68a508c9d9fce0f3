"""The watermark processors: hand-checked rows, and transformers' scores bit for bit."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from pygen import SynthIDTextWatermarkingConfig, WatermarkingConfig
from pygen.processors import LogitsProcessor
from pygen.processors import watermark as ours
from tests.generate.models import VOCAB_SIZE, hf_model
from tests.helpers.generation import generate_tokens

KGW, SYNTHID = "WatermarkLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor"
SIZES: dict[str, Any] = {
    "sampling_table_size": 2**16,
    "sampling_table_seed": 0,
    "context_history_size": 1024,
    "device": "cpu",
}
KEYS = [654, 400, -836, 123, 2**62, 443]
# (1 + id) * multiplier + 1 = 0 modulo 2**64. An empty history holds zeros.
HASHES_TO_ZERO = 2**63 - 1 - (pow(6364136223846793005, -1, 2**64) + 2**63) % 2**64
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def both(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return getattr(ours, name)(*args, **kwargs), getattr(theirs, name)(*args, **kwargs)


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", [KGW, SYNTHID, "SynthIDTextWatermarkState"])
def test_signatures_are_theirs(name: str) -> None:
    mine, other = getattr(ours, name), getattr(theirs, name)
    assert parameters(mine) == parameters(other)
    for method in vars(other):
        if callable(getattr(other, method)) and (not method.startswith("_") or method == "_compute_keys"):
            assert parameters(getattr(mine, method)) == parameters(getattr(other, method)), method


@pytest.mark.parametrize(
    ("config", "name"), [(WatermarkingConfig(0.5, 1.5), KGW), (SynthIDTextWatermarkingConfig(4, [1, 2, 3]), SYNTHID)]
)
def test_configs_construct_their_processor(config: Any, name: str) -> None:
    processor = config.construct_processor(100, "cpu")
    assert type(processor) is getattr(ours, name)
    assert isinstance(processor, LogitsProcessor)
    other = getattr(theirs, name)(**config.to_dict(), **({"vocab_size": 100} if name == KGW else {}), device="cpu")
    for attribute, value in vars(other).items():
        if attribute != "rng":
            mine = getattr(processor, attribute)
            assert torch.equal(mine, value) if isinstance(value, Tensor) else mine == value, attribute


# Green lists


def test_lefthash_marks_the_start_of_a_seeded_permutation() -> None:
    scores = torch.zeros(2, 8)
    marked = ours.WatermarkLogitsProcessor(8, "cpu", greenlist_ratio=0.4, bias=2.5)(
        torch.tensor([[9, 3], [3, 5]]), scores
    )
    for row, last_id in enumerate((3, 5)):
        greenlist = torch.randperm(8, generator=torch.Generator().manual_seed(15485863 * last_id))[:3]
        assert marked[row].nonzero().flatten().tolist() == sorted(greenlist.tolist())
    assert marked.unique().tolist() == [0.0, 2.5]
    assert not scores.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize(
    ("vocab_size", "knobs"),
    [
        (50, {}),
        (101, {"context_width": 2, "bias": 0.1}),
        (3000, {"context_width": 4, "greenlist_ratio": 0.6, "hashing_key": 2**61 + 7}),
        (101, {"context_width": 3, "hashing_key": -5, "bias": -3.3}),
    ],
)
def test_green_lists_are_theirs(vocab_size: int, knobs: dict[str, Any], scheme: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine, other = both(KGW, vocab_size, "cpu", seeding_scheme=scheme, **knobs)
    assert torch.equal(mine.fixed_table, other.fixed_table)
    for _ in range(3):
        ids = torch.randint(vocab_size, (3, 6))
        # The scores are wider than the vocabulary, with many ties, as after some filter.
        scores = torch.randint(-40, 40, (3, vocab_size + 3)).to(dtype) / 7
        scores[1, torch.randperm(vocab_size)[30:]] = -torch.inf
        scores[2, 5:7] = torch.tensor([math.nan, math.inf])
        before = scores.clone()
        for _ in range(2):  # the second call reads the cache
            assert same(mine(ids, scores), other(ids, scores))
        assert same(scores, before)
        assert torch.equal(mine._get_greenlist_ids(ids[0]), other._get_greenlist_ids(ids[0]))
        for processor in (mine, other):
            processor.set_seed(ids[0])
        assert mine.rng.initial_seed() == other.rng.initial_seed()


@pytest.mark.parametrize("boundary", [38, 39, 40, 41])
def test_equal_scores_at_the_last_candidate(boundary: int) -> None:
    torch.manual_seed(boundary)
    mine, other = both(KGW, 500, "cpu", seeding_scheme="selfhash", greenlist_ratio=0.9)
    scores = torch.zeros(4, 500)
    for row in scores:
        row[torch.randperm(500)[:boundary]] = torch.rand(boundary) + 1
    assert same(mine(torch.zeros(4, 3, dtype=torch.int64), scores), other(torch.zeros(4, 3, dtype=torch.int64), scores))


def test_what_breaks_in_transformers() -> None:
    ids, scores = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 5)
    few = ours.WatermarkLogitsProcessor(5, "cpu", 0.5, seeding_scheme="selfhash")
    marked = few(ids, scores) - scores
    assert set(marked.round(decimals=4).unique().tolist()) == {0.0, 2.0}  # the vocabulary has fewer than 40 tokens
    none = ours.WatermarkLogitsProcessor(5, "cpu", 0.1, seeding_scheme="selfhash")
    assert torch.equal(none(ids, scores), scores)  # no candidate is green
    assert none(ids[:0], scores[:0]).shape == (0, 5)
    assert ours.WatermarkLogitsProcessor(5, "cpu", 0.5)(ids[:0], scores[:0]).shape == (0, 5)


def test_too_few_tokens_for_a_seed(caplog: pytest.LogCaptureFixture) -> None:
    scores = torch.randn(1, 9)
    with caplog.at_level(logging.WARNING):
        assert ours.WatermarkLogitsProcessor(9, "cpu", context_width=3)(torch.tensor([[1, 2]]), scores) is scores
    assert "context_width=3 needs as many tokens before it, got 2" in caplog.text


def test_caches_stay_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_GREENLIST_BYTES", 8 * 25 * 4)
    lefthash, selfhash = (ours.WatermarkLogitsProcessor(100, "cpu", seeding_scheme=s) for s in ("lefthash", "selfhash"))
    selfhash.cache_size = 50
    fresh = ours.WatermarkLogitsProcessor(100, "cpu")
    for last_id in range(9):
        ids, scores = torch.full((2, 1), last_id), torch.randn(2, 100)
        assert same(lefthash(ids, scores), fresh(ids, scores))
        selfhash(ids, scores)
    assert len(lefthash._greenlists) == 4
    assert len(selfhash._are_green_cache) == 50


# SynthID-Text


def test_a_layer_moves_mass_to_the_tokens_that_win() -> None:
    processor = ours.SynthIDTextWatermarkLogitsProcessor(3, [1], **SIZES)
    updated = processor.update_scores(torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[[1], [0], [1]]]))
    assert updated[0].exp().tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert updated[0, 2] == torch.finfo(torch.float32).min


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ngram_len", "knobs"),
    [
        (5, {}),
        (2, {"context_history_size": 2}),
        (1, {}),
        (3, {"sampling_table_size": 1009, "sampling_table_seed": 5, "skip_first_ngram_calls": True}),
        (4, {"debug_mode": True}),
    ],
)
def test_synthid_scores_are_theirs(ngram_len: int, knobs: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    mine, other = both(SYNTHID, ngram_len, KEYS, **{**SIZES, **knobs})
    ids = torch.randint(3, (4, 12))  # contexts of three tokens soon repeat
    for length in range(5, 12):
        scores = (torch.randn(4, 211) * 3).to(dtype)
        scores[:, torch.randperm(211)[:60]] = -torch.inf
        before = scores.clone()
        assert same(mine(ids[:, :length], scores), other(ids[:, :length], scores))
        assert same(scores, before)
    for name, value in vars(other.state).items():
        mine_value = getattr(mine.state, name)
        assert torch.equal(mine_value, value) if isinstance(value, Tensor) else mine_value == value


@pytest.mark.parametrize("knobs", [{}, {"context_history_size": 2}, {"skip_first_ngram_calls": True}])
def test_synthid_reads_the_context_of_reordered_rows(knobs: dict[str, Any]) -> None:
    torch.manual_seed(4)
    arguments = {**SIZES, **knobs}
    processor = ours.SynthIDTextWatermarkLogitsProcessor(3, KEYS, **arguments)
    ids = torch.randint(3, (4, 5))
    for _ in range(9):
        scores = torch.randn(4, 211)
        marked = processor(ids, scores)
        for row in range(4):
            alone = theirs.SynthIDTextWatermarkLogitsProcessor(3, KEYS, **arguments)
            for length in range(5, ids.shape[1]):
                alone(ids[row : row + 1, :length], scores[:1])
            assert same(marked[row : row + 1], alone(ids[row : row + 1], scores[row : row + 1]))
        ids = torch.cat([ids[torch.randint(4, (4,))], torch.randint(3, (4, 1))], dim=1)


@pytest.mark.parametrize("search", [{"num_beams": 4}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}])
def test_synthid_marks_what_beams_find(search: dict[str, Any]) -> None:
    config = SynthIDTextWatermarkingConfig(ngram_len=3, keys=list(range(11, 31)), context_history_size=256)
    processor = config.construct_processor(VOCAB_SIZE, "cpu")
    prompts = torch.randint(3, VOCAB_SIZE, (4, 4), generator=torch.Generator().manual_seed(1))
    arguments: dict[str, Any] = {"max_new_tokens": 24, "pad_token_id": 0, "watermarking_config": config, **search}
    text = generate_tokens(hf_model("llama"), prompts, **arguments)[:, 4:]
    values = processor.compute_g_values(text).double()[processor.compute_context_repetition_mask(text)]
    # An unmarked text has a mean of 0.5.
    assert values.mean() > 0.6


@pytest.mark.parametrize("history", [1, 3, 1024])
@pytest.mark.parametrize("ngram_len", [1, 2, 4])
def test_hashes_and_g_values_equal_transformers(ngram_len: int, history: int) -> None:
    torch.manual_seed(2)
    mine, other = both(SYNTHID, ngram_len, KEYS, **{**SIZES, "context_history_size": history})
    assert mine.accumulate_hash(torch.tensor(1), torch.tensor([HASHES_TO_ZERO])) == 0
    for length in (ngram_len, 9, 40):
        ids = torch.randint(4, (3, length))
        ids[0, [0, length // 2]] = HASHES_TO_ZERO
        ngrams = ids.unfold(1, ngram_len, 1)
        assert torch.equal(mine.compute_ngram_keys(ngrams), other.compute_ngram_keys(ngrams))
        assert torch.equal(mine.compute_g_values(ids), other.compute_g_values(ids))
        mask = mine.compute_context_repetition_mask(ids)
        assert mask.dtype == torch.bool
        assert torch.equal(mask, other.compute_context_repetition_mask(ids))
        assert torch.equal(mine.compute_eos_token_mask(ids, 2), other.compute_eos_token_mask(ids, 2))
        indices = torch.randint(50, (3, 7))
        contexts = ids[:, : ngram_len - 1]
        for one, two in zip(mine._compute_keys(contexts, indices), other._compute_keys(contexts, indices), strict=True):
            assert torch.equal(one, two)
    assert mine.expected_mean_g_value(100, 0.3) == other.expected_mean_g_value(100, 0.3)
    assert mine.compute_eos_token_mask(ids, None).all()


def test_rows_without_a_distribution_stay_for_the_draw_to_report() -> None:
    scores = torch.randn(4, 10)
    scores[1, 3], scores[2, 3], scores[3] = math.nan, math.inf, -math.inf
    updated = ours.SynthIDTextWatermarkLogitsProcessor(3, [1, 2], **SIZES)(torch.zeros(4, 1, dtype=torch.int64), scores)
    assert same(updated[1:], scores[1:])
    assert not torch.equal(updated[0], scores[0])


# Wrong arguments

IDS, SCORES = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 9)
GREEN = {"vocab_size": 9, "device": "cpu"}
LAYERS = {"ngram_len": 4, "keys": [1, 2], **SIZES}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (KGW, {"vocab_size": 0}, "`vocab_size` must be a 64-bit integer >= 1, got 0"),
        (KGW, {"greenlist_ratio": 0.0}, "`greenlist_ratio` must be a number in (0, 1), got 0.0"),
        (KGW, {"greenlist_ratio": 1.0}, "`greenlist_ratio` must be a number in (0, 1), got 1.0"),
        (KGW, {"bias": math.nan}, "`bias` must be a finite number, got nan"),
        (KGW, {"hashing_key": 1.5}, "`hashing_key` must be a 64-bit integer, got 1.5"),
        (KGW, {"seeding_scheme": "hash"}, "`seeding_scheme` must be one of 'lefthash', 'selfhash', got 'hash'"),
        (KGW, {"context_width": 0}, "`context_width` must be a 64-bit integer >= 1, got 0"),
        (SYNTHID, {"ngram_len": 0}, "`ngram_len` must be an integer in [1, 1024], got 0"),
        (SYNTHID, {"ngram_len": 10**9}, "`ngram_len` must be an integer in [1, 1024], got 1000000000"),
        (
            SYNTHID,
            {"context_history_size": 2**20 + 1},
            "`context_history_size` must be an integer in [1, 1048576], got 1048577",
        ),
        (
            SYNTHID,
            {"keys": [7] * 1025},
            "`keys` must be a non-empty list of 64-bit integers, at most 1024, got [7, 7, 7, 7, 7, 7, ...]",
        ),
        (SYNTHID, {"keys": []}, "`keys` must be a non-empty list of 64-bit integers, at most 1024, got []"),
        (
            SYNTHID,
            {"keys": [2**63]},
            f"`keys` must be a non-empty list of 64-bit integers, at most 1024, got [{2**63}]",
        ),
        (
            SYNTHID,
            {"sampling_table_size": 2**24 + 1},
            "`sampling_table_size` must be an integer in [1, 16777216], got 16777217",
        ),
        (SYNTHID, {"sampling_table_seed": None}, "`sampling_table_seed` must be a 64-bit integer, got None"),
        (SYNTHID, {"context_history_size": 0}, "`context_history_size` must be an integer in [1, 1048576], got 0"),
        (SYNTHID, {"debug_mode": 1}, "`debug_mode` must be a boolean, got 1"),
    ],
)
def test_wrong_settings(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        getattr(ours, name)(**{**(GREEN if name == KGW else LAYERS), **arguments})
    assert str(error.value) == message


SHAPES = "`input_ids` and `scores` must have shapes (rows, length) and (rows, vocab_size), got"
TEXTS = "`input_ids` must have shape (batch_size, input_len), got"


@pytest.mark.parametrize(
    ("name", "method", "arguments", "message"),
    [
        (KGW, "__call__", (IDS[0], SCORES), f"{SHAPES} (6,) and (2, 9)"),
        (KGW, "__call__", (IDS, SCORES[:1]), f"{SHAPES} (2, 6) and (1, 9)"),
        (
            KGW,
            "__call__",
            (IDS, SCORES[:, :8]),
            "`scores` must have at least vocab_size=9 columns, got shape (2, 8)",
        ),
        (SYNTHID, "__call__", (IDS, SCORES[0]), f"{SHAPES} (2, 6) and (9,)"),
        (SYNTHID, "__call__", (IDS[:1], SCORES[:1]), "`scores` must have the 2 rows of the calls before, got 1"),
        (
            SYNTHID,
            "compute_ngram_keys",
            (IDS,),
            "`ngrams` must have shape (batch_size, num_ngrams, ngram_len=4), got (2, 6)",
        ),
        (SYNTHID, "compute_eos_token_mask", (IDS[0], 1), f"{TEXTS} (6,)"),
        *(
            (
                SYNTHID,
                method,
                (IDS[:, :3],),
                "`input_ids` must have shape (batch_size, input_len) with input_len >= ngram_len=4, got (2, 3)",
            )
            for method in ("compute_g_values", "compute_context_repetition_mask")
        ),
    ],
)
def test_wrong_shapes(name: str, method: str, arguments: tuple[Any, ...], message: str) -> None:
    processor = getattr(ours, name)(**(GREEN if name == KGW else LAYERS))
    processor(IDS, SCORES)
    calls = getattr(processor, "state", None) and processor.state.num_calls
    with pytest.raises(ValueError) as error:
        getattr(processor, method)(*arguments)
    assert str(error.value) == message
    assert (getattr(processor, "state", None) and processor.state.num_calls) == calls
