"""The plan: what fuses, where custom processors run, and that fused and separate stages agree."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import processors as built
from pygen.config.config import WatermarkingConfig
from pygen.generate import generate
from pygen.plan.pipeline import bind_plan, check_plan
from pygen.plan.plan import make_plan
from tests.generate.models import FAMILIES, cached_model, counting_table, hf_model
from tests.generate.plans import make_call, make_state
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7, 5, 6], [8, 9, 10, 8, 9]])
SAMPLE: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 5}


def untouched(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def nothing_forbidden(batch_id: int, ids: Tensor) -> list[int]:
    return list(range(10))


BIAS_OF_TWO = {"sequence_bias": {(1,): 2.0, (3, 4): 1.0}}
# settings, step, stages
STAGES: list[tuple[dict[str, Any], int, tuple[str, ...]]] = [
    ({}, 0, ("argmax",)),
    ({"top_k": 3, "temperature": 2.0}, 0, ("argmax",)),
    (SAMPLE, 0, ("temperature + top_k + draw",)),
    ({**SAMPLE, "temperature": 1, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}, 0, ("top_k + draw",)),
    ({"repetition_penalty": 1.2, "suppress_tokens": [3]}, 0, ("repetition_penalty + bans + argmax",)),
    ({"presence_penalty": 1.0, "frequency_penalty": 0.5}, 0, ("presence_penalty + frequency_penalty + argmax",)),
    ({"suppress_tokens": [], "bad_words_ids": [[1]], "eos_token_id": 1}, 0, ("argmax",)),
    # settings that act on some steps only
    ({"begin_suppress_tokens": [3]}, 0, ("bans + argmax",)),
    ({"begin_suppress_tokens": [3]}, 1, ("argmax",)),
    ({"min_new_tokens": 3, "eos_token_id": 1}, 2, ("bans + argmax",)),
    ({"min_new_tokens": 3, "eos_token_id": 1}, 3, ("argmax",)),
    ({"min_length": 7, "eos_token_id": 1}, 1, ("bans + argmax",)),
    ({"min_length": 7, "eos_token_id": 1}, 2, ("argmax",)),
    ({"min_length": 7}, 0, ("argmax",)),
    ({"forced_bos_token_id": 3}, 0, ("argmax",)),
    ({"forced_eos_token_id": 3}, 6, ("argmax",)),
    ({"forced_eos_token_id": 3}, 7, ("ForcedEOSTokenLogitsProcessor", "argmax")),
    ({"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 1}, 2, ("argmax",)),
    (
        {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 1},
        3,
        ("ExponentialDecayLengthPenalty", "argmax"),
    ),
    # one-token sequences fuse, longer ones do not
    ({"sequence_bias": {(1,): 2.0}, **SAMPLE}, 0, ("bias + temperature + top_k + draw",)),
    ({**BIAS_OF_TWO, **SAMPLE}, 0, ("SequenceBiasLogitsProcessor", "temperature + top_k + draw")),
    ({"bad_words_ids": [[1], [2]], **SAMPLE}, 0, ("bans + temperature + top_k + draw",)),
    # processors that only ban run before the op
    (
        {
            "repetition_penalty": 1.2,
            "bad_words_ids": [[1], [2, 3]],
            "encoder_no_repeat_ngram_size": 2,
            "prefix_allowed_tokens_fn": nothing_forbidden,
            "suppress_tokens": [4],
            **SAMPLE,
        },
        0,
        (
            "EncoderNoRepeatNGramLogitsProcessor, NoBadWordsLogitsProcessor, PrefixConstrainedLogitsProcessor",
            "repetition_penalty + bans + temperature + top_k + draw",
        ),
    ),
    # others keep their position
    (
        {"sequence_bias": {(1,): 2.0}, "encoder_repetition_penalty": 1.5, "repetition_penalty": 1.2},
        0,
        ("bias", "EncoderRepetitionPenaltyLogitsProcessor", "repetition_penalty + argmax"),
    ),
    (
        {"suppress_tokens": [4], "bad_words_ids": [[3]], "remove_invalid_values": True, **SAMPLE},
        0,
        ("bans", "InfNanRemoveLogitsProcessor", "bans + temperature + top_k + draw"),
    ),
    (
        {"guidance_scale": 2.0, "bad_words_ids": [[3]]},
        0,
        ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "bans + argmax"),
    ),
    (
        {"repetition_penalty": 1.2, "watermarking_config": WatermarkingConfig(), **SAMPLE},
        0,
        ("repetition_penalty + temperature + top_k", "Watermarking", "draw"),
    ),
    ({"renormalize_logits": True, **SAMPLE}, 0, ("temperature + top_k + draw",)),
    ({"renormalize_logits": True, "num_beams": 2, **SAMPLE}, 0, ("temperature + top_k", "LogitNormalization", "draw")),
    # custom processors
    (
        {"repetition_penalty": 1.2, "logits_processor": [untouched, untouched], **SAMPLE},
        0,
        ("repetition_penalty", "untouched", "temperature + top_k + draw"),
    ),
    (
        {"logits_processor": [built.TemperatureLogitsWarper(0.5), transformers.TopPLogitsWarper(0.5)], **SAMPLE},
        0,
        ("temperature + top_p", "temperature + top_k + draw"),
    ),
    ({"logits_processor": [built.TopPLogitsWarper(0.5)], "do_sample": True, "top_k": 0}, 0, ("top_p + draw",)),
    (
        {
            "logits_processor": [built.TopKLogitsWarper(5, min_tokens_to_keep=2)],
            "do_sample": True,
            "top_k": 0,
            "top_p": 0.5,
        },
        0,
        ("top_k", "top_p + draw"),
    ),
    ({"logits_processor": [built.TopPLogitsWarper(0.5)]}, 0, ("TopPLogitsWarper", "argmax")),
    (
        {"logits_processor": [built.TopPLogitsWarper(0.5)], **SAMPLE, "temperature": [0.0, 1.0]},
        0,
        ("TopPLogitsWarper", "temperature + top_k + draw"),
    ),
    (
        {"logits_processor": [built.TopPLogitsWarper(0.5, filter_value=-9.0)], **SAMPLE},
        0,
        ("TopPLogitsWarper", "temperature + top_k + draw"),
    ),
    (
        {"logits_processor": [built.SuppressTokensLogitsProcessor([3])], "repetition_penalty": 1.5},
        0,
        ("repetition_penalty + bans + argmax",),
    ),
]


@pytest.mark.parametrize(("settings", "step", "stages"), STAGES)
def test_stages(settings: dict[str, Any], step: int, stages: tuple[str, ...]) -> None:
    call = make_call(IDS, **settings)
    plan = make_plan(call)
    assert plan.stages(step) == stages
    assert len(plan.reasons()) == sum(not item.knobs for item in plan.items)


@pytest.mark.parametrize(
    ("length", "step", "forced"), [(1, 0, True), (1, 1, False), (2, 0, False), (0, 0, False), (0, 1, True)]
)
def test_the_first_token_is_forced_after_one_token(length: int, step: int, forced: bool) -> None:
    plan = make_plan(make_call(torch.ones(2, length, dtype=torch.int64), forced_bos_token_id=3))
    assert ("ForcedBOSTokenLogitsProcessor" in plan.stages(step)) == forced


@pytest.mark.parametrize(("length", "forced", "step"), [(1, None, 0), (1, 3, 1), (2, 3, 0)])
def test_begin_suppress_tokens_waits_for_a_forced_token(length: int, forced: int | None, step: int) -> None:
    ids = torch.ones(2, length, dtype=torch.int64)
    plan = make_plan(make_call(ids, begin_suppress_tokens=[4], forced_bos_token_id=forced))
    assert [plan.stages(s)[-1] == "bans + argmax" for s in range(3)] == [s == step for s in range(3)]


@pytest.mark.parametrize(
    ("eos", "beams", "keep"), [(None, 1, 1), ([4, 5], 1, 1), (None, 2, 2), (4, 2, 2), ([4, 5], 3, 3)]
)
def test_tokens_that_filters_have_to_keep(eos: Any, beams: int, keep: int) -> None:
    plan = make_plan(make_call(IDS, num_beams=beams, eos_token_id=eos, **SAMPLE, top_p=0.5))
    assert plan.segment(0).last.knobs == {"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_tokens_to_keep": keep}


# settings; a custom processor that replaces a built one; another one that runs at the custom processors' position
PLACES: list[tuple[dict[str, Any], str, Any]] = [
    ({"sequence_bias": {(1,): 2.0}}, "sequence_bias", built.SequenceBiasLogitsProcessor({(2,): 1.0})),
    ({"repetition_penalty": 1.2}, "repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor(1.7)),
    ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size", built.NoRepeatNGramLogitsProcessor(3)),
    ({"bad_words_ids": [[1], [2, 3]]}, "bad_words_ids", transformers.NoBadWordsLogitsProcessor([[4]])),
    ({"min_length": 9, "eos_token_id": 1}, "min_length", built.MinLengthLogitsProcessor(3, 1)),
    ({"min_new_tokens": 2, "eos_token_id": 1}, "min_new_tokens", built.MinNewTokensLengthLogitsProcessor(5, 3, 1)),
    ({"forced_bos_token_id": 3}, "forced_bos_token_id", built.ForcedBOSTokenLogitsProcessor(4)),
    ({"remove_invalid_values": True}, "remove_invalid_values", transformers.InfNanRemoveLogitsProcessor()),
    ({"suppress_tokens": [3]}, "suppress_tokens", built.SuppressTokensLogitsProcessor([4])),
]


@pytest.mark.parametrize(("settings", "name", "processor"), PLACES, ids=[place[1] for place in PLACES])
def test_a_processor_of_a_built_class_replaces_it(
    settings: dict[str, Any], name: str, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"repetition_penalty": 1.1, "begin_suppress_tokens": [5], **settings}
    given: dict[str, Any] = {"logits_processor": [untouched, processor, untouched]}
    with caplog.at_level(logging.WARNING):
        items = make_plan(make_call(IDS, **settings, **given)).items
    expected = [item.name for item in make_plan(make_call(IDS, **settings)).items]
    expected[expected.index(name)] = "logits_processor[1]"
    if name == "bad_words_ids":
        expected.remove(name)
    assert [item.name for item in items] == [*expected, "logits_processor[0]"]
    what = f"`logits_processor[1]` ({type(processor).__name__}) takes the place of the one that `{name}` asks for."
    assert what in [record.getMessage() for record in caplog.records]


def test_a_processor_of_another_class_with_that_name_replaces_none() -> None:
    class RepetitionPenaltyLogitsProcessor(built.RepetitionPenaltyLogitsProcessor):
        pass

    given = [RepetitionPenaltyLogitsProcessor(1.5)]
    plan = make_plan(make_call(IDS, repetition_penalty=1.2, logits_processor=given))
    assert plan.stages() == ("repetition_penalty", "RepetitionPenaltyLogitsProcessor", "argmax")


@pytest.mark.parametrize("settings", [{}, {"num_return_sequences": 3, "do_sample": True}, {"num_beams": 2}])
def test_the_prefix_function_gets_the_number_of_the_prompt(settings: dict[str, Any]) -> None:
    seen: list[tuple[int, list[int]]] = []

    def record(batch_id: int, ids: Tensor) -> list[int]:
        seen.append((batch_id, ids.tolist()))
        return [0]

    call = make_call(IDS, prefix_allowed_tokens_fn=record, **settings)
    processor = make_plan(call).items[0].processor
    rows = IDS.repeat_interleave(call.num_copies, dim=0)
    processor(rows, torch.zeros(len(rows), 5))
    assert seen == [(row // call.num_copies, ids) for row, ids in enumerate(rows.tolist())]


def test_hidden_positions_of_the_input_are_not_seen() -> None:
    encoder_ids, mask = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 0]])
    settings = {"encoder_repetition_penalty": 2.0, "encoder_no_repeat_ngram_size": 1}
    plan = make_plan(make_call(IDS, encoder_ids=encoder_ids, mask=mask, **settings))
    raised = plan.items[0].processor(IDS, torch.ones(2, 8))
    banned = plan.items[1].processor(IDS, torch.ones(2, 8))
    assert raised.tolist() == [[1, 1, 1, 2, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2, 1, 1]]
    assert torch.equal(banned == -torch.inf, raised == 2)


def test_settings_of_the_input_need_ids() -> None:
    settings = {"encoder_repetition_penalty": 2.0, "encoder_no_repeat_ngram_size": 1}
    for name, value in settings.items():
        setting: dict[str, Any] = {name: value}
        with pytest.warns(UserWarning, match=f"`{name}` needs `input_ids` and is ignored"):
            plan = make_plan(make_call(IDS, encoder_ids=torch.ones(2, 5, 3), **setting))
        assert plan.items == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_bias": {(500, 1): 1.0}}, "`sequence_bias` must hold ids below the vocabulary size 10, got 500"),
        ({"sequence_bias": {(10,): 1.0}}, "`sequence_bias` must hold ids below the vocabulary size 10, got 10"),
        ({"bad_words_ids": [[1, 12]]}, "`bad_words_ids` must hold ids below the vocabulary size 10, got 12"),
        ({"forced_bos_token_id": 10}, "`forced_bos_token_id` must hold ids below the vocabulary size 10, got 10"),
        ({"forced_eos_token_id": [1, 10]}, "`forced_eos_token_id` must hold ids below the vocabulary size 10, got 10"),
    ],
)
def test_ids_outside_the_vocabulary(settings: dict[str, Any], message: str) -> None:
    call = make_call(IDS, **settings)
    plan = make_plan(call)
    state = make_state(call, plan)
    check_plan(plan, state)
    with pytest.raises(ValueError) as refused:
        bind_plan(plan, torch.zeros(2, 10), state)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exponential_decay_length_penalty": (1, 1.5)}, "`exponential_decay_length_penalty` needs `eos_token_id`"),
        ({"forced_eos_token_id": -1}, "`forced_eos_token_id` must hold ids >= 0, got -1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        make_plan(make_call(IDS, **settings))
    assert str(refused.value) == message


@pytest.mark.parametrize("temperature", [0.0, [0.0, 0.9]])
def test_a_greedy_row_is_greedy_behind_a_watermark(temperature: Any) -> None:
    watermark = WatermarkingConfig(bias=3.0)
    settings: dict[str, Any] = {"watermarking_config": watermark, "pad_token_id": 0, "max_new_tokens": 6}
    greedy = generate_tokens(cached_model(), IDS, **settings)
    sampled = generate_tokens(cached_model(), IDS, **settings, do_sample=True, top_k=0, temperature=temperature)
    rows = 2 if temperature == 0 else 1
    assert torch.equal(sampled[:rows], greedy[:rows])
    assert not torch.equal(greedy, generate_tokens(cached_model(), IDS, pad_token_id=0, max_new_tokens=6))


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
    {"do_sample": True, "eta_cutoff": 0.01, "epsilon_cutoff": 0.01, "top_h": 0.8, "top_n_sigma": 2.0, "seed": 5},
]


@pytest.mark.parametrize("sampling", range(len(SAMPLING)))
@pytest.mark.parametrize("shaping", range(len(SETTINGS)))
def test_one_stage_equals_three(shaping: int, sampling: int) -> None:
    settings = {**SETTINGS[shaping], **SAMPLING[sampling], "pad_token_id": 0, "max_new_tokens": 8}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logprobs": True, "top_logprobs": 3}
    torch.manual_seed(9)
    fused = generate_output(cached_model(), IDS, **settings)
    torch.manual_seed(9)
    staged = generate_output(cached_model(), IDS, logits_processor=[untouched], **settings)
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

    processors: list[Any] = [double_even_ids, favour_the_last, transformers.InfNanRemoveLogitsProcessor()]
    settings = {**SAMPLING[number], "repetition_penalty": 1.3, "suppress_tokens": [4, 5], "max_new_tokens": 8}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 0}
    torch.manual_seed(3)
    expected = hf_model(family).generate(IDS, logits_processor=processors, **settings)
    torch.manual_seed(3)
    actual = generate_output(hf_model(family), IDS, logits_processor=processors, **settings)
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


def test_a_processor_without_a_setting_is_allowed() -> None:
    limited = generate_tokens(
        counting_table(),
        torch.tensor([[1]]),
        logits_processor=[transformers.SuppressTokensLogitsProcessor([2])],
        max_new_tokens=2,
    )
    assert limited.tolist() == [[1, 3, 4]]


def test_an_error_in_a_processor_leaves_the_next_call_right() -> None:
    model = hf_model("llama")
    expected = generate_tokens(model, IDS, max_new_tokens=5)

    def fail_at_8(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == 8:
            raise KeyError("from the user")
        return scores

    with pytest.raises(KeyError, match="from the user"):
        generate(model, IDS, logits_processor=[fail_at_8], max_new_tokens=5)
    assert torch.equal(generate_tokens(model, IDS, max_new_tokens=5), expected)
