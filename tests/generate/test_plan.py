"""The plan: what fuses, when bans act, and that one stage and three give the same tokens and scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen.generate import generate
from pygen.plan import WARPERS, Plan, active_knobs, ban_schedule
from tests.generate.models import FAMILIES, cached_model, counting_table, hf_model

IDS = torch.tensor([[5, 6, 7, 5, 6], [8, 9, 10, 8, 9]])


def untouched(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores


@pytest.mark.parametrize(
    ("arguments", "schedule"),
    [
        ((None, None, None, 0), ((0, ()),)),
        (([4, 3], None, [9], 0), ((0, (3, 4)),)),
        ((None, [2], [9], 3), ((0, (2, 9)), (1, (9,)), (3, ()))),
        (([4], [2], [9], 1), ((0, (2, 4, 9)), (1, (4,)))),
        (([4], None, [4], 2), ((0, (4,)), (2, (4,)))),
        ((None, None, None, 5), ((0, ()),)),
    ],
)
def test_ban_schedule(arguments: Any, schedule: Any) -> None:
    assert ban_schedule(*arguments) == schedule


def test_neutral_knobs_are_left_out() -> None:
    values = {"temperature": 1, "top_k": 0, "top_p": 1.0, "min_p": None, "top_h": 0.5, "typical_p": 0.9, "other": 3}
    assert active_knobs(WARPERS, values) == {"top_h": 0.5, "typical_p": 0.9}


def test_stages() -> None:
    knobs: dict[str, Any] = {"penalties": {"repetition_penalty": 1.2}, "warpers": {"top_k": 5}, "noise": {}}
    fused = Plan(do_sample=True, bans=((0, (3,)),), **knobs)
    assert fused.stages() == ("repetition_penalty + bans + top_k + draw",)
    staged = Plan(do_sample=True, processors=(untouched,), **knobs)
    assert staged.stages() == ("repetition_penalty", "untouched", "top_k + draw")
    assert Plan(do_sample=False, penalties={}, warpers={}, noise={}).stages() == ("argmax",)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5, 6, 7], "min_new_tokens": 3, "eos_token_id": [1, 2, 8]},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"renormalize_logits": True},
]
SAMPLING: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.6, "top_k": 9, "top_p": 0.8, "min_p": 0.02},
    {"do_sample": True, "temperature": [0.5, 0.0], "typical_p": 0.7, "top_k": 0},
    {"do_sample": True, "eta_cutoff": 0.01, "epsilon_cutoff": 0.01, "top_h": 0.8, "seed": 5},
]


@pytest.mark.parametrize("sampling", range(len(SAMPLING)))
@pytest.mark.parametrize("shaping", range(len(SETTINGS)))
def test_one_stage_equals_three(shaping: int, sampling: int) -> None:
    settings = {**SETTINGS[shaping], **SAMPLING[sampling], "pad_token_id": 0, "max_new_tokens": 8}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logprobs": True, "top_logprobs": 3}
    torch.manual_seed(9)
    fused = generate(cached_model(), IDS, **settings)
    torch.manual_seed(9)
    staged = generate(cached_model(), IDS, logits_processor=[untouched], **settings)
    assert torch.equal(fused.sequences, staged.sequences)
    assert fused.finish_reason == staged.finish_reason
    for x, y in zip(fused.scores, staged.scores, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(fused.logprobs, staged.logprobs)
    torch.testing.assert_close(fused.top_logprobs.logprobs, staged.top_logprobs.logprobs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_user_processors_as_transformers(family: str, number: int) -> None:
    def double_even_ids(input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.where(torch.arange(scores.shape[1]) % 2 == 0, scores * 2, scores)

    def favour_the_last(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter_add(1, input_ids[:, -1:], torch.ones(len(scores), 1))

    processors = [double_even_ids, favour_the_last, transformers.InfNanRemoveLogitsProcessor()]
    settings = {**SAMPLING[number], "repetition_penalty": 1.3, "suppress_tokens": [4, 5], "max_new_tokens": 8}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 0}
    torch.manual_seed(3)
    expected = hf_model(family).generate(IDS, logits_processor=processors, **settings)
    torch.manual_seed(3)
    actual = generate(hf_model(family), IDS, logits_processor=processors, **settings)
    assert torch.equal(actual.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for x, y in zip(actual[name], expected[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_processors_see_the_sequence_so_far_and_may_keep_scores() -> None:
    seen: list[list[list[int]]] = []
    kept: list[Tensor] = []

    def keep(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(input_ids.tolist())
        kept.append(scores)
        return scores

    generate(counting_table(), torch.tensor([[1], [2]]), logits_processor=[keep], max_new_tokens=3)
    assert seen == [[[1], [2]], [[1, 2], [2, 3]], [[1, 2, 3], [2, 3, 4]]]
    assert [scores.argmax(1).tolist() for scores in kept] == [[2, 3], [3, 4], [4, 5]]
    assert all(scores.dtype == torch.float32 for scores in kept)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, r"`logits_processor\[1\]` must return a floating-point tensor, got NoneType"),
        (torch.zeros(2, 10, dtype=torch.long), TypeError, r"must return a floating-point tensor, got torch.int64"),
        (torch.zeros(2, 9), ValueError, r"`logits_processor\[1\]` must return scores of shape \(2, 10\), got \(2, 9\)"),
    ],
)
def test_what_processors_return_is_checked(result: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(
            counting_table(),
            torch.tensor([[1], [2]]),
            logits_processor=[untouched, lambda ids, scores: result],
            max_new_tokens=2,
        )


def test_a_processor_that_stands_for_no_setting_is_welcome() -> None:
    limited = generate(
        counting_table(),
        torch.tensor([[1]]),
        logits_processor=[transformers.SuppressTokensLogitsProcessor([2])],
        max_new_tokens=2,
    )
    assert limited.tolist() == [[1, 3, 4]]


def test_an_error_in_a_processor_leaves_the_next_call_right() -> None:
    model = hf_model("llama")
    expected = generate(model, IDS, max_new_tokens=5)

    def fail_at_8(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == 8:
            raise KeyError("from the user")
        return scores

    with pytest.raises(KeyError, match="from the user"):
        generate(model, IDS, logits_processor=[fail_at_8], max_new_tokens=5)
    assert torch.equal(generate(model, IDS, max_new_tokens=5), expected)
