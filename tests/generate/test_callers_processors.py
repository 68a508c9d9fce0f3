"""Custom processors that keep a state or depend on their rows: what pygen calls them with."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor

from pygen import SynthIDTextWatermarkingConfig
from pygen.generate import generate
from tests.generate.against_transformers import assert_both_same
from tests.generate.models import TableModel, hf_model
from tests.generate.test_assisted import assistant
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 17, 40, 5, 17], [8, 9, 61, 8, 9]])


class Counts:
    """A grammar with a state: a token is congruent modulo 7 to the sum of the tokens before it.

    calls: the texts of its calls.
    """

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.calls: list[list[list[int]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls.append(input_ids.tolist())
        self.sum = torch.zeros(len(input_ids)) if self.sum is None else self.sum + input_ids[:, -1]
        wrong = torch.arange(scores.shape[1]) % 7 != self.sum[:, None] % 7
        return scores.masked_fill(wrong, -math.inf)


class CopiedCounts(Counts):
    """`copies` are the clones that drafting used."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[CopiedCounts] = []

    def clone(self) -> CopiedCounts:
        self.copies.append(copy.deepcopy(self))
        return self.copies[-1]


def obeys(text: list[int]) -> bool:
    return all(token % 7 == sum(text[:i]) % 7 for i, token in enumerate(text))


DRAFTS: dict[str, dict[str, Any]] = {
    "assistant": {"assistant_model": assistant("llama")},
    "early exit": {"assistant_early_exit": 1},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("kind", [Counts, CopiedCounts])
@pytest.mark.parametrize("drafts", DRAFTS)
def test_drafts_leave_a_processors_state_alone(drafts: str, kind: type[Counts]) -> None:
    settings: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 3}, {"do_sample": True}]
    for given in settings:
        for ids in (IDS[:1], IDS):
            alone, drafted = kind(), kind()
            common = {"max_new_tokens": 9, "pad_token_id": 0, **given}
            expected = generate_tokens(hf_model("llama"), ids, logits_processor=[alone], **common)
            result = generate_tokens(hf_model("llama"), ids, logits_processor=[drafted], **common, **DRAFTS[drafts])
            assert all(obeys(row) for row in result[:, 5:].tolist())
            assert drafted.calls == [result[:, :length].tolist() for length in range(5, 14)]
            if given != {"do_sample": True}:
                assert torch.equal(result, expected)


def test_drafts_are_made_with_copies_of_a_processor_that_has_clone() -> None:
    """The model drafts for itself, so a draft is wrong only if drafting ignores the grammar."""
    grammar, model = CopiedCounts(), hf_model("llama")
    drafts: dict[str, Any] = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant"}
    drafts["assistant_confidence_threshold"] = 0.0
    generate(model, IDS[:1], assistant_model=model, max_new_tokens=10, logits_processor=[grammar], **drafts)
    assert [[len(text[0]) for text in used.calls] for used in grammar.copies] == [
        [5, 6, 7, 8],
        [5, 6, 7, 8, 9, 10, 11, 12, 13],
    ]


def by_place(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Returns different scores for every row index."""
    rows = torch.randn(scores.shape, generator=torch.Generator().manual_seed(input_ids.shape[1]))
    return scores + rows


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 7}, {"eos_token_id": [7, 50, 60, 70]}])
def test_beams_are_shown_in_transformers_order(settings: dict[str, Any]) -> None:
    common: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 4, "pad_token_id": 0, "num_return_sequences": 4}
    arguments: dict[str, Any] = {"logits_processor": [by_place], "return_dict_in_generate": True, "output_scores": True}
    assert_both_same(hf_model("llama"), IDS, **common, **arguments, **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beam_groups": 2, "diversity_penalty": 1e-6}, {"force_words_ids": [[9, 10]]}],
    ids=["beams", "groups", "words"],
)
def test_the_best_beam_is_shown_first(settings: dict[str, Any]) -> None:
    model, seen = TableModel(torch.randn(23, 23, generator=torch.Generator().manual_seed(2))), []

    def look(input_ids: Tensor, scores: Tensor) -> Tensor:
        log_probs = model.table.log_softmax(-1)
        torch.testing.assert_close(scores, log_probs[input_ids[:, -1]])
        if input_ids.shape[1] > 3:
            sums = log_probs[input_ids[:, 2:-1], input_ids[:, 3:]].sum(1)
            seen.append(sums.view(2, -1))
        return scores

    arguments: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 4, "pad_token_id": 0, "logits_processor": [look]}
    generate(model, torch.tensor([[5, 6, 7], [8, 9, 11]]), **arguments, **settings)
    assert len(seen) >= 5
    for sums in seen:
        assert bool((sums.diff(dim=1) <= 1e-5).all()), sums


class Follows:
    """Keeps the text of every row, and has a hook that reorders the texts with the beams."""

    def __init__(self) -> None:
        self.texts: Tensor | None = None
        self.moves = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.texts is not None:
            assert torch.equal(self.texts, input_ids[:, :-1])
        self.texts = input_ids.clone()
        return scores

    def reorder_cache(self, beam_idx: Tensor) -> None:
        assert self.texts is not None
        self.moves += int((beam_idx != torch.arange(len(beam_idx))).sum())
        self.texts = self.texts[beam_idx]


def test_a_processor_that_keeps_rows_learns_how_beams_move() -> None:
    follows = Follows()
    generate(hf_model("llama"), IDS, max_new_tokens=8, num_beams=4, pad_token_id=0, logits_processor=[follows])
    assert follows.moves > 0


GROUPS: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6, "pad_token_id": 0}


class CopiedFollows(Follows):
    """`texts` are those of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[CopiedFollows] = []

    def clone(self) -> CopiedFollows:
        self.copies.append(CopiedFollows())
        return self.copies[-1]


def test_every_group_of_beams_has_a_copy_of_a_processor_that_has_clone() -> None:
    follows, grammar = CopiedFollows(), CopiedCounts()
    arguments: dict[str, Any] = {"max_new_tokens": 7, "logits_processor": [follows, grammar]}
    with pytest.raises(NotImplementedError, match=r"`logits_processor\[0\]` keeps a state, which groups of beams"):
        generate(hf_model("llama"), IDS, **GROUPS, **{**arguments, "logits_processor": [Follows()]})
    with pytest.raises(NotImplementedError, match=r"`logits_processor\[1\]` keeps a state, which groups of beams"):
        generate(hf_model("llama"), IDS, **GROUPS, **{**arguments, "logits_processor": [by_place, Counts()]})
    generate(hf_model("llama"), IDS, **GROUPS, **arguments)
    assert [len(used.calls) for used in grammar.copies] == [7, 7]
    assert all(used.moves > 0 for used in follows.copies)
    assert len(follows.copies) == 2 and follows.texts is None


def test_a_processor_that_takes_beam_group_idx_learns_the_group() -> None:
    groups: list[int] = []

    class Asks:
        def __call__(self, input_ids: Tensor, scores: Tensor, beam_group_idx: int) -> Tensor:
            groups.append(beam_group_idx)
            return scores

    generate(hf_model("llama"), IDS, max_new_tokens=3, logits_processor=cast(Any, [Asks()]), **GROUPS)
    assert groups == [0, 1] * 3


KEYS = list(range(11, 21))
SEARCHES: dict[str, dict[str, Any]] = {
    # No filters, because custom processors run before them and a watermark setting after them.
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"num_beams": 4},
    "groups": GROUPS,
}


@pytest.mark.parametrize("search", SEARCHES)
def test_transformers_own_watermark_follows_its_rows(search: str) -> None:
    by_hand = transformers.SynthIDTextWatermarkLogitsProcessor(3, KEYS, 512, 7, 64, torch.device("cpu"))
    config = SynthIDTextWatermarkingConfig(3, KEYS, 64, sampling_table_seed=7, sampling_table_size=512)
    results = []
    for how in ({"logits_processor": [by_hand]}, {"watermarking_config": config}):
        torch.manual_seed(0)
        results.append(generate_tokens(hf_model("llama"), IDS, max_new_tokens=12, **SEARCHES[search], **how))
    assert results[0].equal(results[1]) and by_hand.state is None


@pytest.mark.parametrize("search", SEARCHES)
def test_transformers_own_guidance_follows_its_rows(search: str) -> None:
    model, negative = hf_model("llama"), torch.tensor([[3, 4, 5], [6, 7, 8]])
    by_hand = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(2.5, model, cast(Any, negative))
    results = []
    for how in ({"logits_processor": [by_hand]}, {"guidance_scale": 2.5, "negative_prompt_ids": negative}):
        torch.manual_seed(0)
        results.append(generate_tokens(model, IDS, max_new_tokens=8, **SEARCHES[search], **how))
    assert results[0].equal(results[1])
    by_hand(IDS, torch.zeros(2, 101))
    with pytest.raises(ValueError, match=r"`logits_processor\[0\]` has served another call"):
        generate(model, IDS, max_new_tokens=8, logits_processor=[by_hand])
