"""A row whose scores or keys are invalid, and the rows beside it and after it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import pygen
from tests.batch.alone import differences, run_alone
from tests.batch.models import small_model

# The model gives NaN, or +inf, for texts with this id.
BROKEN = 77
VALUES = {"nan": torch.nan, "inf": torch.inf}


def broken_model(family: str, value: float) -> Any:
    model = copy.deepcopy(small_model(family))
    with torch.no_grad():
        model.get_input_embeddings().weight[BROKEN] = value
        # The head may share the weights.
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(small_model(family).get_output_embeddings().weight.clone())
    return model


def prompt(*ids: int, **settings: Any) -> dict[str, Any]:
    return {"input_ids": [*ids], "do_sample": True, "seed": sum(ids), "max_new_tokens": 7, **settings}


def good_prompts(count: int) -> list[dict[str, Any]]:
    return [prompt(1 + n, 2, 40, suppress_tokens=[BROKEN], max_new_tokens=3 + n % 5) for n in range(count)]


def breaking(step: int, **settings: Any) -> dict[str, Any]:
    """A prompt whose text gets the id as token number `step`, so that the scores after it are invalid."""

    def force(batch_id: int, input_ids: Any) -> list[int]:
        return [BROKEN] if len(input_ids) == 2 + step else [1 + len(input_ids), 30, 31, 32]

    return prompt(8, 9, prefix_allowed_tokens_fn=force, **settings)


@pytest.mark.parametrize(
    ("family", "value"), [("llama", "nan"), ("llama", "inf"), ("gpt2", "nan"), ("gemma3", "nan"), ("bloom", "nan")]
)
def test_an_invalid_row_ends_and_others_go_on(family: str, value: str) -> None:
    model = broken_model(family, VALUES[value])
    for on_invalid in ("raise", "greedy", "eos"):
        settings = {"on_invalid": on_invalid, "eos_token_id": 100, "pad_token_id": 0}
        batch = good_prompts(6)
        batch[1:1] = [prompt(5, BROKEN, 6, **settings)]
        batch[3:3] = [breaking(2, **settings)]
        results = [*pygen.generate_batch(model, batch, rows=3)]
        for given, result in zip(batch, results, strict=True):
            if result.index not in (1, 3):
                assert not differences(model, given, [result])
        first, later = results[1], results[3]
        if on_invalid == "raise":
            assert (first.finish_reason, first.token_ids) == ("error", [])
            assert "step 0 hold NaN" in str(first.error)
            assert (later.finish_reason, len(later.token_ids), later.token_ids[-1]) == ("error", 3, BROKEN)
            assert "step 3 hold NaN" in str(later.error)
        elif on_invalid == "eos":
            assert (first.finish_reason, first.token_ids) == ("eos", [100])
            assert (later.finish_reason, later.token_ids[2:]) == ("eos", [BROKEN, 100])
        else:
            assert [first.finish_reason, later.finish_reason] == ["length", "length"]
            assert len(first.token_ids) == len(later.token_ids) == 7
            assert not differences(model, batch[1], [first]) + differences(model, batch[3], [later])


def test_invalid_rows_at_every_step_and_those_that_take_their_places() -> None:
    model = broken_model("llama", torch.nan)
    # Long prompts, whose rows need columns that the broken one has used.
    batch = [*good_prompts(4), prompt(*range(1, 40), suppress_tokens=[BROKEN]), *good_prompts(3)]
    alone = [run_alone(model, given).sequences[0].tolist() for given in batch]
    for step in range(6):
        broken = breaking(step, on_invalid=("raise", "greedy")[step % 2])
        for chunk, as_completed in ((None, True), (2, False)):
            given = [*batch[:2], broken, *batch[2:]]
            options: dict[str, Any] = {"rows": 2, "prefill_chunk_size": chunk, "as_completed": as_completed}
            results = [*pygen.generate_batch(model, given, **options)]
            texts = {result.index: result.prompt_ids + result.token_ids for result in results}
            assert [texts[index] for index in range(9) if index != 2] == alone


def test_a_cancelled_row_that_was_invalid_leaves_nothing() -> None:
    model = broken_model("llama", torch.nan)
    with pygen.Engine(model, rows=1) as engine:
        handle = engine.submit(prompt(5, BROKEN, 6, on_invalid="greedy", max_new_tokens=100))
        next(iter(handle))
        handle.cancel()
        for given in good_prompts(3):
            assert not differences(model, given, engine.submit(given).results(timeout=60))
    assert handle.result().finish_reason == "cancelled"


def test_a_beginning_with_an_invalid_id_is_not_shared_by_others() -> None:
    model = broken_model("llama", torch.nan)
    beginning = [*range(1, 21)]
    batch = [prompt(*beginning, BROKEN, 30), *(prompt(*beginning, 30 + n, suppress_tokens=[BROKEN]) for n in range(3))]
    results = [*pygen.generate_batch(model, batch, rows=1)]
    assert results[0].error is not None
    for result in results[1:]:
        assert not differences(model, batch[result.index], [result])


def test_no_allowed_token_ends_its_row_alone() -> None:
    nothing = {"suppress_tokens": [*range(101)], "output_logprobs": "raw", "eos_token_id": 100, "pad_token_id": 0}
    model, batch = small_model("llama"), good_prompts(4)
    batch += [prompt(3, 4, on_invalid=on_invalid, **nothing) for on_invalid in ("raise", "greedy", "eos")]
    results = [*pygen.generate_batch(model, batch, rows=7)]
    for given, result in zip(batch, results, strict=True):
        assert not differences(model, given, [result])
    assert "no token that is allowed" in str(results[4].error)
