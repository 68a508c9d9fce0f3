"""How rows end: end-of-sequence tokens, lengths, criteria, time, cancelling, and invalid scores."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria

from pygen import stopping
from pygen.generate import generate
from pygen.request.settings import resolve_settings
from pygen.stopping.criteria import build_criteria
from tests.generate.models import TableModel, counting_table, hf_model
from tests.helpers.generation import generate_output, generate_tokens
from tests.helpers.tokenizers import byte_level

PROMPTS = torch.tensor([[1], [4], [7]])


def reasons(*args: Any, **kwargs: Any) -> tuple[list[list[int]], list[str]]:
    output = generate_output(*args, return_dict_in_generate=True, **kwargs)
    return output.sequences.tolist(), output.finish_reason


def test_rows_end_one_by_one_and_are_padded() -> None:
    sequences, why = reasons(counting_table(), PROMPTS, eos_token_id=[3, 6], pad_token_id=0, max_new_tokens=4)
    assert sequences == [[1, 2, 3, 0, 0], [4, 5, 6, 0, 0], [7, 8, 9, 0, 1]]
    assert why == ["eos", "eos", "length"]


def test_generation_ends_with_the_last_row() -> None:
    model = counting_table()
    sequences, why = reasons(model, PROMPTS, eos_token_id=[3, 5, 9], pad_token_id=0, max_new_tokens=50)
    assert sequences == [[1, 2, 3], [4, 5, 0], [7, 8, 9]]
    assert why == ["eos"] * 3
    assert len(model.calls) == 2


def test_eos_at_the_last_step_is_eos() -> None:
    assert reasons(counting_table(), PROMPTS[:1], eos_token_id=3, max_new_tokens=2) == ([[1, 2, 3]], ["eos"])


def test_eos_in_the_prompt_does_not_end_a_row() -> None:
    sequences, why = reasons(counting_table(), torch.tensor([[3, 3]]), eos_token_id=3, max_new_tokens=2)
    assert (sequences, why) == ([[3, 3, 4, 5]], ["length"])


def test_eos_at_the_first_step() -> None:
    assert reasons(counting_table(), PROMPTS[:1], eos_token_id=2, max_new_tokens=9) == ([[1, 2]], ["eos"])


def test_pad_falls_to_the_first_eos() -> None:
    sequences, _ = reasons(counting_table(), PROMPTS[:2], eos_token_id=[2, 9], max_new_tokens=3)
    assert sequences == [[1, 2, 2, 2], [4, 5, 6, 7]]


def test_eos_as_a_tensor() -> None:
    sequences, _ = reasons(counting_table(), PROMPTS[:1], eos_token_id=torch.tensor([3]), max_new_tokens=5)
    assert sequences == [[1, 2, 3]]


@pytest.mark.parametrize("limits", [{"min_new_tokens": 2}, {"min_length": 3}])
def test_no_eos_before_the_minimum(limits: dict[str, int]) -> None:
    sequences, why = reasons(counting_table(), PROMPTS[:1], eos_token_id=[2, 3], max_new_tokens=6, **limits)
    # 2 and 3 are banned. The others are equal, so the lowest, 0, comes; then 1, then 2.
    assert (sequences, why) == ([[1, 0, 1, 2]], ["eos"])


def test_suppressed_at_the_first_step_only() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 2, "begin_suppress_tokens": [2], "suppress_tokens": [4]}
    assert generate_tokens(counting_table(), PROMPTS[:1], **settings).tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("eos", [None, 9])
def test_criteria_of_the_user(eos: int | None) -> None:
    seen: list[tuple[int, ...]] = []

    def ends_in_3(input_ids: Tensor, scores: Any) -> Tensor:
        seen.append(tuple(input_ids.shape))
        assert scores is None
        return input_ids[:, -1] == 3

    sequences, why = reasons(
        counting_table(), PROMPTS, stopping_criteria=[ends_in_3], eos_token_id=eos, pad_token_id=0, max_new_tokens=4
    )
    # Without an end-of-sequence token a stopped row continues, as in transformers.
    first = [1, 2, 3, 4, 5] if eos is None else [1, 2, 3, 0, 0]
    third = [7, 8, 9, 0, 1] if eos is None else [7, 8, 9, 0, 0]
    assert sequences == [first, [4, 5, 6, 7, 8], third]
    assert why == ["stop", "length", "length" if eos is None else "eos"]
    assert seen == [(3, 2), (3, 3), (3, 4), (3, 5)]


def test_criteria_end_the_call_when_all_rows_are_stopped() -> None:
    sequences, why = reasons(
        counting_table(), PROMPTS, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 3], max_new_tokens=9
    )
    assert (len(sequences[0]), why) == (3, ["stop"] * 3)


def test_criteria_get_the_scores_that_are_kept() -> None:
    counts: list[int] = []

    def count(input_ids: Tensor, scores: tuple[Tensor, ...]) -> bool:
        counts.append(len(scores))
        return False

    settings: dict[str, Any] = {"output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 3}
    generate(counting_table(), PROMPTS, stopping_criteria=[count], **settings)
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("eos", [None, list(range(30))])
def test_criteria_as_transformers(family: str, eos: list[int] | None) -> None:
    model = hf_model(family)
    ids = torch.randint(4, 100, (4, 3), generator=torch.Generator().manual_seed(8))

    def large(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] > 80

    settings: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": eos, "pad_token_id": 0, "do_sample": True}
    torch.manual_seed(5)
    expected = model.generate(ids, stopping_criteria=[large], **settings)
    torch.manual_seed(5)
    assert torch.equal(generate_tokens(model, ids, stopping_criteria=[large], **settings), expected)


def test_criteria_of_transformers() -> None:
    """A criterion that knows the end-of-sequence token makes stopped rows emit pad."""
    model, ids = hf_model("llama"), torch.randint(4, 100, (4, 3), generator=torch.Generator().manual_seed(8))
    criteria = transformers.StoppingCriteriaList(
        [EosTokenCriteria(list(range(40))), transformers.MaxTimeCriteria(60.0)]
    )
    settings: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0, "stopping_criteria": criteria}
    assert torch.equal(generate_tokens(model, ids, **settings), model.generate(ids, **settings))


REPLACING: list[tuple[str, tuple[Any, ...], dict[str, Any], int, str | None]] = [
    # criterion, its arguments, settings, tokens generated, criterion that it replaces
    ("MaxLengthCriteria", (4,), {"max_new_tokens": 2}, 3, "MaxLengthCriteria"),
    ("MaxLengthCriteria", (3,), {"max_new_tokens": 9}, 2, "MaxLengthCriteria"),
    ("MaxLengthCriteria", (1,), {"max_new_tokens": 9}, 1, "MaxLengthCriteria"),
    ("EosTokenCriteria", (3,), {"max_new_tokens": 9, "eos_token_id": 2}, 2, "EosTokenCriteria"),
    ("EosTokenCriteria", ([4, 3],), {"max_new_tokens": 9, "pad_token_id": 0}, 2, None),
    ("MaxTimeCriteria", (60.0,), {"max_new_tokens": 3, "max_time": 0.0}, 3, "MaxTimeCriteria"),
    ("MaxTimeCriteria", (0.0, 0.0), {"max_new_tokens": 3, "max_time": 60.0}, 1, "MaxTimeCriteria"),
    ("MaxTimeCriteria", (0.0, 0.0), {"max_new_tokens": 3}, 1, None),
]


@pytest.mark.parametrize("module", [stopping, transformers.generation.stopping_criteria])
@pytest.mark.parametrize(("name", "arguments", "settings", "count", "replaced"), REPLACING)
def test_criteria_that_replace_settings(
    module: Any,
    name: str,
    arguments: tuple[Any, ...],
    settings: dict[str, Any],
    count: int,
    replaced: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    criterion = getattr(module, name)(*arguments)
    sequences, why = reasons(counting_table(), PROMPTS[:1], stopping_criteria=[criterion], **settings)
    assert sequences == [list(range(1, 2 + count))]
    assert why == [
        {"MaxLengthCriteria": "length", "EosTokenCriteria": "eos"}.get(name, "length" if count > 1 else "stop")
    ]
    warned = [record.getMessage() for record in caplog.records if record.name == "pygen.stopping.criteria"]
    assert warned == [
        f"`stopping_criteria`: the {kind} given takes the place of the setting."
        for kind in sorted({"MaxLengthCriteria"} & {name} | {replaced} - {None})  # type: ignore[type-var]
    ]


@pytest.mark.parametrize("settings", [{"max_new_tokens": 5}, {"max_new_tokens": 5, "eos_token_id": 9}])
def test_replacing_criteria_as_transformers(settings: dict[str, Any]) -> None:
    model, ids = hf_model("llama"), torch.randint(4, 100, (4, 3), generator=torch.Generator().manual_seed(8))
    for given in ([("MaxLengthCriteria", 11)], [("EosTokenCriteria", list(range(30)))], [("EosTokenCriteria", 3)] * 2):
        outputs: list[Any] = []
        for module, run in ((stopping, generate), (transformers.generation.stopping_criteria, None)):
            criteria = [getattr(module, name)(argument) for name, argument in given]
            call = run or type(model).generate
            outputs.append(call(model, ids, pad_token_id=0, stopping_criteria=criteria, **settings))
        assert torch.equal(*outputs)


def test_a_subclass_runs_beside_the_setting() -> None:
    class Mine(stopping.EosTokenCriteria):
        pass

    sequences, why = reasons(
        counting_table(), PROMPTS[:2], stopping_criteria=[Mine(3)], eos_token_id=6, pad_token_id=0, max_new_tokens=9
    )
    assert (sequences, why) == ([[1, 2, 3], [4, 5, 6]], ["stop", "eos"])


def test_order_of_criteria() -> None:
    tokenizer = byte_level()
    user: list[Any] = [lambda ids, scores: False, stopping.MaxTimeCriteria(9.0)]
    config = generation_config(max_time=1.0, stop_strings=["a"], is_assistant=True, assistant_confidence_threshold=0.4)
    built = build_criteria(
        user, config, prompt_length=3, max_new_tokens=5, eos_token_ids=[1], pad_token_id=None, tokenizer=tokenizer
    )
    assert [type(c).__name__ for c in built.criteria] == [
        "MaxTimeCriteria",
        "StopStringCriteria",
        "ConfidenceCriteria",
        "function",
    ]
    assert (built.max_new_tokens, built.eos_token_ids, built.max_time, built.pads) == (5, [1], None, True)


def generation_config(**settings: Any) -> Any:
    return resolve_settings(None, None, settings).config


def test_nothing_is_asked_for_nothing() -> None:
    built = build_criteria(
        None, generation_config(max_time=1.0), prompt_length=3, max_new_tokens=5, eos_token_ids=[1], pad_token_id=None
    )
    assert (built.criteria, built.max_time, built.eos_token_ids) == ((), 1.0, [1])


@pytest.mark.parametrize("eos", [None, 9])
def test_stop_strings_as_transformers(eos: int | None) -> None:
    """Some rows stop and some never do; rows are padded if a token could end them."""
    tokenizer = byte_level()
    model, ids = hf_model("llama"), torch.randint(4, 100, (6, 3), generator=torch.Generator().manual_seed(8))
    text = [tokenizer.decode(row) for row in generate_tokens(model, ids, max_new_tokens=20)[:, 3:]]
    # ASCII only: for parts of a character, pygen matches bytes and transformers the text of each token alone.
    strings = [re.findall("[!-~]{2}", row)[3] for row in text[:3]]
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": eos, "pad_token_id": 0, "tokenizer": tokenizer}
    expected = model.generate(ids, stop_strings=strings, **settings)
    assert torch.equal(generate_tokens(model, ids, stop_strings=strings, **settings), expected)
    # A criterion built by hand replaces the setting.
    criterion = stopping.StopStringCriteria(tokenizer, strings)
    assert torch.equal(generate_tokens(model, ids, stopping_criteria=[criterion], **settings), expected)
    assert torch.equal(
        generate_tokens(model, ids, stopping_criteria=[criterion], stop_strings="x", **settings), expected
    )
    if eos is not None:
        assert (expected == 0).any()


def test_stop_strings_in_a_config() -> None:
    tokenizer = byte_level()
    model = counting_table(len(tokenizer))
    string = tokenizer.decode([7, 8])
    output = generate_output(
        model,
        PROMPTS[:1],
        generation_config(stop_strings=string, max_new_tokens=20, return_dict_in_generate=True),
        tokenizer=tokenizer,
    )
    assert (output.sequences.tolist(), output.finish_reason) == ([[1, 2, 3, 4, 5, 6, 7, 8]], ["stop"])


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (
            lambda ids, scores: torch.zeros(2, dtype=torch.bool),
            ValueError,
            "`stopping_criteria`: <lambda> must return a bool",
        ),
        (
            lambda ids, scores: torch.zeros(3),
            TypeError,
            "`stopping_criteria`: <lambda> must return bools, got torch.float32",
        ),
    ],
)
def test_answers_of_criteria_are_checked(criterion: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(counting_table(), PROMPTS, stopping_criteria=[criterion], max_new_tokens=2)


def test_max_time() -> None:
    sequences, why = reasons(counting_table(), PROMPTS, max_time=0.0, max_new_tokens=9)
    assert (len(sequences[0]), why) == (2, ["stop"] * 3)


def test_cancel_ends_after_the_step_in_progress() -> None:
    cancel = threading.Event()

    def cancel_at_4(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == 4:
            cancel.set()
        return scores

    sequences, why = reasons(counting_table(), PROMPTS, cancel=cancel, logits_processor=[cancel_at_4], max_new_tokens=9)
    assert (len(sequences[0]), why) == (5, ["stop"] * 3)


def test_cancel_before_the_first_step() -> None:
    cancel = threading.Event()
    cancel.set()
    model = counting_table()
    output = generate_output(
        model, PROMPTS, cancel=cancel, max_new_tokens=9, return_dict_in_generate=True, output_logprobs=True
    )
    assert torch.equal(output.sequences, PROMPTS)
    assert output.finish_reason == ["stop"] * 3
    assert output.logprobs.shape == (3, 0)
    assert model.calls == []


def broken_table(value: float) -> TableModel:
    """Returns a table in which invalid scores follow 5: token 3 scores `value`."""
    model = counting_table()
    model.table[5, 3] = value
    return model


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), r"\+inf")])
def test_invalid_scores_are_raised_with_row_step_and_id(value: float, what: str, do_sample: bool) -> None:
    message = f"scores of row 1 at step 1 hold {what}, first at token id 3"
    with pytest.raises(RuntimeError, match=message):
        generate(broken_table(value), PROMPTS, max_new_tokens=4, do_sample=do_sample, top_k=1)


def test_a_row_without_an_allowed_token_is_raised() -> None:
    with pytest.raises(
        RuntimeError, match="scores of row 0 at step 0 hold no token that is allowed \\(3 rows in all\\)"
    ):
        generate(counting_table(), PROMPTS, max_new_tokens=4, suppress_tokens=list(range(10)))


def test_finished_rows_may_be_invalid() -> None:
    model = counting_table()
    model.table[0] = float("nan")
    settings: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 3}
    assert generate_tokens(model, PROMPTS[:2], **settings).tolist() == [[1, 2, 0, 0], [4, 5, 6, 7]]


def test_invalid_rows_go_on_greedily() -> None:
    model = broken_table(float("nan"))
    assert generate_tokens(model, PROMPTS[1:2], on_invalid="greedy", max_new_tokens=4).tolist() == [[4, 5, 6, 7, 8]]


def test_invalid_rows_end() -> None:
    sequences, why = reasons(
        broken_table(float("nan")), PROMPTS, on_invalid="eos", eos_token_id=[9, 3], pad_token_id=0, max_new_tokens=4
    )
    assert sequences == [[1, 2, 3], [4, 5, 9], [7, 8, 9]]
    assert why == ["eos"] * 3
