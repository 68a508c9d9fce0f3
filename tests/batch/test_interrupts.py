"""Errors of the model and Ctrl-C in every step: no prompt is lost, and no text changes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import pygen
from tests.batch.models import small_model
from tests.batch.texts import Acting, before_forward, counted, prompts, tokens_alone

# A prompt that is in a row during most steps.
LONG = 2


class Failure(Exception):
    pass


def raise_at(number: int, error: BaseException) -> Any:
    def act(call: int) -> None:
        if call == number:
            raise error

    return act


def is_whole(result: pygen.BatchResult) -> bool:
    """Whether the result is that of the prompt alone; it must be its beginning where it has an error."""
    tokens = tokens_alone(result.index)
    assert result.token_ids == tokens[: len(result.token_ids)]
    assert (result.error is None) == (result.finish_reason == "length") == (result.token_ids == tokens)
    return result.error is None


def all_are_whole(model: Any) -> bool:
    results = [*pygen.generate_batch(model, prompts(), rows=3)]
    return len(results) == 6 and all(map(is_whole, results))


@pytest.mark.parametrize("as_completed", [False, True])
def test_ctrl_c_in_every_forward(as_completed: bool) -> None:
    model, interrupted = small_model("llama"), 0
    for number in itertools.count():
        results = []
        try:
            with before_forward(model, raise_at(number, KeyboardInterrupt())):
                for result in pygen.generate_batch(model, prompts(), rows=3, as_completed=as_completed):
                    results.append(result)
        except KeyboardInterrupt:
            interrupted += 1
        assert all(map(is_whole, results))
        if len(results) == 6:
            break
    assert interrupted == number > 10
    assert all_are_whole(model)


@pytest.mark.parametrize("step", [0, 1, 5, 9])
def test_ctrl_c_in_a_callable(step: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    model, batch, results = small_model("llama"), prompts(), []
    batch[LONG]["logits_processor"] = [Acting(interrupt, step, len(batch[LONG]["input_ids"]))]
    with pytest.raises(KeyboardInterrupt):
        for result in pygen.generate_batch(model, batch, rows=3, as_completed=True):
            results.append(result)
    assert all(map(is_whole, results))
    assert LONG not in [result.index for result in results]
    assert all_are_whole(model)


def test_the_model_fails_in_every_forward_of_generate_batch() -> None:
    model = small_model("llama")
    raised = []
    for number in itertools.count():
        results, read = [], list[int]()
        with before_forward(model, raise_at(number, Failure())):
            try:
                for result in pygen.generate_batch(model, counted(prompts(), read), rows=3):
                    results.append(result)
            except Failure:
                raised.append(number)
        assert [result.index for result in results] == read
        failed = [result.index for result in results if not is_whole(result)]
        # A prompt that cannot be read fails alone.
        assert len(failed) == 1 or bool(failed) == (number in raised[-1:])
        if not failed and number > 10:
            break
    assert len(raised) > 10


def test_the_model_fails_in_every_forward_of_an_engine() -> None:
    model, closed = small_model("llama"), 0
    for number in itertools.count():
        handles: list[Any] = []
        with before_forward(model, raise_at(number, Failure("of the model"))), pygen.Engine(model, rows=3) as engine:
            try:
                handles += [engine.submit(prompt) for prompt in prompts()]
            except RuntimeError as error:
                assert "takes no more prompts: a step failed with Failure('of the model')" in str(error)
            results = [handle.result(timeout=60) for handle in handles]
            failed = [result.index for result in results if not is_whole(result)]
            if len(failed) > 1:
                closed += 1
                with pytest.raises(RuntimeError, match="a step failed with Failure"):
                    engine.submit([1])
        for index in failed:
            with pytest.raises(Failure):
                list(handles[index])
        if not failed and number > 10:
            break
    assert closed > 3


def test_a_callable_that_raises_no_exception_ends_all_prompts_of_an_engine() -> None:
    def leave() -> None:
        raise SystemExit

    batch = prompts()
    batch[LONG]["logits_processor"] = [Acting(leave, 3, len(batch[LONG]["input_ids"]))]
    with pygen.Engine(small_model("llama"), rows=3, max_queued=9) as engine:
        results = [handle.result(timeout=60) for handle in [engine.submit(prompt) for prompt in batch]]
    assert not is_whole(results[LONG])
    assert all(is_whole(result) or "SystemExit" in str(result.error) for result in results)


def test_an_iterator_that_fails_is_heard_after_the_results() -> None:
    def source() -> Any:
        yield from prompts()[:4]
        raise Failure("of the iterator")

    results = []
    with pytest.raises(Failure, match="of the iterator"):
        for result in pygen.generate_batch(small_model("llama"), source(), rows=3):
            results.append(result)
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert all(map(is_whole, results))
