"""In which order prompts are read and results come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import pygen
from tests.batch.models import small_model
from tests.batch.texts import prompts, tokens_alone


class Source:
    """Counts how many prompts were read."""

    def __init__(self, batch: Any) -> None:
        self.read, self._batch = 0, batch

    def __iter__(self) -> Iterator[Any]:
        for prompt in self._batch:
            self.read += 1
            yield prompt


@pytest.mark.parametrize("as_completed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_prompts_are_read_as_rows_get_free(rows: int, as_completed: bool) -> None:
    source = Source([{"input_ids": [1 + n], "max_new_tokens": 2 + n % 3} for n in range(12)])
    results = pygen.generate_batch(small_model("llama"), source, rows=rows, as_completed=as_completed)
    assert source.read == 0
    for yielded, _ in enumerate(results, start=1):
        if as_completed:
            # Rows that end in one step are refilled in the next.
            assert source.read <= yielded + rows
    assert source.read == yielded == 12


def test_refused_prompts_without_end_do_not_keep_results_back() -> None:
    def source() -> Iterator[Any]:
        yield [1, 2]
        while True:
            yield []

    results = pygen.generate_batch(small_model("llama"), source(), rows=2, max_new_tokens=3)
    first = next(results)
    assert (first.index, len(first.token_ids)) == (0, 3)
    assert [type(next(results).error) for _ in range(20)] == [ValueError] * 20
    results.close()  # type: ignore[attr-defined]


def test_in_order_and_as_completed() -> None:
    model = small_model("llama")
    in_order = [*pygen.generate_batch(model, prompts(), rows=3)]
    as_completed = [*pygen.generate_batch(model, prompts(), rows=3, as_completed=True)]
    assert [result.index for result in in_order] == [0, 1, 2, 3, 4, 5]
    assert sorted(result.index for result in as_completed) == [0, 1, 2, 3, 4, 5]
    # Of the first three, prompt 0 has 3 tokens, 1 has 6 and 2 has 10.
    order = [result.index for result in as_completed]
    assert order.index(0) < order.index(1) < order.index(2)
    done = [result.times.done for result in as_completed]
    assert done == sorted(done, key=lambda time: time or 0.0)
    for result in in_order + as_completed:
        assert result.token_ids == tokens_alone(result.index)
        times = result.times
        assert times.first_token is not None and times.done is not None
        assert times.queued <= times.first_token <= times.done


@pytest.mark.parametrize("as_completed", [False, True])
def test_sequences_of_a_prompt(as_completed: bool) -> None:
    batch = prompts(num_return_sequences=3)
    results = [*pygen.generate_batch(small_model("llama"), batch, rows=2, as_completed=as_completed)]
    found = [(result.index, result.copy) for result in results]
    assert sorted(found) == [(index, copy) for index in range(6) for copy in range(3)]
    assert as_completed or found == sorted(found)


def test_an_abandoned_call_leaves_the_model_as_it_was() -> None:
    model = small_model("llama")
    for count in range(1, 6):
        results = pygen.generate_batch(model, prompts(), rows=3)
        assert [next(results).token_ids for _ in range(count)] == [tokens_alone(index) for index in range(count)]
        results.close()  # type: ignore[attr-defined]


def test_progress_counts_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    results = [*pygen.generate_batch(small_model("llama"), prompts(num_return_sequences=2), rows=3, progress=True)]
    assert len(results) == 12
    shown = capsys.readouterr().err
    assert "6prompt" in shown and "token/s" in shown


def test_nothing_to_do() -> None:
    assert [*pygen.generate_batch(small_model("llama"), [])] == []
