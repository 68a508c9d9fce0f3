"""Prompts that begin alike read the common beginning once."""

from __future__ import annotations

import pytest

from pygen.batch.batch import Batch
from pygen.batch.request import make_request
from tests.batch.models import small_model

BEGINNING = [1 + n % 50 for n in range(20)]


def positions_read(prompts: list[list[int]], prefix_positions: int) -> tuple[int, int]:
    """The positions that a batch of as many rows read, and those that it took from earlier prompts."""
    model = small_model("llama")
    batch = Batch(model, rows=len(prompts), prefix_positions=prefix_positions)
    for index, prompt in enumerate(prompts):
        batch.add(make_request(model, prompt, index=index, settings={"max_new_tokens": 2}))
    while batch.is_busy:
        batch.step()
    return batch.stats.prompt_positions, batch.stats.shared_positions


@pytest.mark.parametrize("ends", [[1, 2, 3, 4], [1, 1, 1, 1], [2, 2, 1, 3]], ids=["lengths", "one length", "both"])
def test_the_beginning_is_read_once(ends: list[int]) -> None:
    prompts = [BEGINNING + [60 + number] * count for number, count in enumerate(ends)]
    assert positions_read(prompts, 1000) == (len(BEGINNING) + sum(ends), 3 * len(BEGINNING))


def test_equal_prompts_read_their_last_id_alone() -> None:
    assert positions_read([BEGINNING] * 3, 1000) == (len(BEGINNING) + 2, 2 * (len(BEGINNING) - 1))


def test_nothing_is_shared_without_room_for_it() -> None:
    assert positions_read([BEGINNING] * 3, 0) == (3 * len(BEGINNING), 0)
