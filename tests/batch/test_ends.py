"""Rows that end in any step, by any means, change nothing for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import pygen
from tests.batch.models import small_model
from tests.batch.texts import Acting, ActingCriterion, ActingPrefix, counted, prompts, tokens_alone

# Of the prompt that ends early: it has the most tokens, and others come and go beside it.
LONG = 2
STEPS = range(len(tokens_alone(LONG)))
CALLABLES: dict[str, tuple[Callable[..., Any], int]] = {
    "logits_processor": (lambda act, step, length: [Acting(act, step, length)], 0),
    "prefix_allowed_tokens_fn": (ActingPrefix, 0),
    "stopping_criteria": (lambda act, step, length: [ActingCriterion(act, step, length)], 1),
}


class Failure(Exception):
    pass


def raise_failure() -> None:
    raise Failure("by the prompt's callable")


def run(batch: Iterable[dict[str, Any]], **options: Any) -> list[pygen.BatchResult]:
    return [*pygen.generate_batch(small_model("llama"), batch, rows=3, **options)]


def assert_others_unchanged(results: list[pygen.BatchResult]) -> None:
    assert [result.index for result in results] == list(range(6))
    for result in results:
        if result.index != LONG:
            assert (result.token_ids, result.finish_reason) == (tokens_alone(result.index), "length"), result


@pytest.mark.parametrize("step", STEPS)
def test_end_of_sequence_at_every_step(step: int) -> None:
    batch, tokens = prompts(), tokens_alone(LONG)
    end = tokens.index(tokens[step])
    batch[LONG]["eos_token_id"] = tokens[step]
    results = run(batch)
    assert_others_unchanged(results)
    assert results[LONG].token_ids == tokens[: end + 1]
    assert results[LONG].finish_reason == "eos"


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("step", STEPS)
def test_a_callable_fails_at_every_step(name: str, step: int) -> None:
    batch = prompts()
    make, kept = CALLABLES[name]
    batch[LONG][name] = make(raise_failure, step, len(batch[LONG]["input_ids"]))
    results = run(batch)
    assert_others_unchanged(results)
    failed = results[LONG]
    assert isinstance(failed.error, Failure) and failed.finish_reason == "error"
    assert failed.token_ids == tokens_alone(LONG)[: step + kept]


# The first step of a row gives two tokens.
@pytest.mark.parametrize("step", STEPS)
def test_cancelled_at_every_step(step: int) -> None:
    cancel, batch = threading.Event(), prompts()
    length = len(batch[LONG]["input_ids"])
    batch[LONG]["stopping_criteria"] = [ActingCriterion(cancel.set, step, length)]
    read: list[int] = []
    results = run(counted(batch, read), cancel=cancel)
    assert [result.index for result in results] == read
    assert results[LONG].token_ids == tokens_alone(LONG)[: max(step + 1, 2)]
    for result in results:
        tokens = tokens_alone(result.index)
        assert result.error is None
        assert result.token_ids == tokens[: len(result.token_ids)]
        assert result.finish_reason == ("length" if len(result.token_ids) == len(tokens) else "cancelled")


@pytest.mark.parametrize("step", STEPS)
def test_a_cancelled_handle_at_every_step(step: int) -> None:
    batch, handles = prompts(), list[pygen.BatchHandle]()
    has_handle = threading.Event()

    def cancel() -> None:
        assert has_handle.wait(60)
        handles[LONG].cancel()

    batch[LONG]["stopping_criteria"] = [ActingCriterion(cancel, step, len(batch[LONG]["input_ids"]))]
    with pygen.Engine(small_model("llama"), rows=3) as engine:
        handles += [engine.submit(prompt) for prompt in batch]
        has_handle.set()
    results = [handle.result(timeout=60) for handle in handles]
    assert_others_unchanged(results)
    assert results[LONG].token_ids == tokens_alone(LONG)[: max(step + 1, 2)]
    is_last = step + 1 == len(tokens_alone(LONG))
    assert results[LONG].finish_reason == ("length" if is_last else "cancelled")
    assert [event.token_id for event in handles[LONG]] == results[LONG].token_ids


def test_cancelled_before_the_first_step() -> None:
    cancel, read = threading.Event(), list[int]()
    cancel.set()
    assert run(counted(prompts(), read), cancel=cancel) == []
    assert read == []
