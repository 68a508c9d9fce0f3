"""Threads: draws from one generator take turns, kept plans serve all, and a prepared op serves one at a time."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pygen import rng
from pygen.ops import (
    BeamState,
    beam_step,
    prepare_beam_step,
    prepare_process_logits,
    prepare_sample,
    process_logits,
    sample,
    verify_draft,
)
from tests.helpers.logits import make_logits

THREADS = 8
# Kernels release the GIL from 32,768 scores on.
WIDE = 40_000


def in_threads(call: Callable[[int], Any], count: int) -> list[Any]:
    """Runs call(0), call(1), ... in threads that start together."""
    ready = threading.Barrier(THREADS)

    def share(first: int) -> list[Any]:
        ready.wait()
        return [call(number) for number in range(first, count, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return [result for results in pool.map(share, range(THREADS)) for result in results]


def beam_tokens(logits: torch.Tensor, **knobs: Any) -> tuple[int, ...]:
    state = BeamState.create(torch.zeros(1, 1, dtype=torch.int64), 2, 2)
    beam_step(logits.expand(2, -1), state, do_sample=True, **knobs)
    return tuple(state.step_tokens[0].tolist())


DRAWS: dict[str, Callable[..., Any]] = {
    "sample": lambda logits, **knobs: sample(logits, **knobs).token_ids.item(),
    "beam_step": beam_tokens,
}


@pytest.mark.parametrize("op", DRAWS)
@pytest.mark.parametrize("source", ["philox", "torch"])
@pytest.mark.parametrize("own", [True, False], ids=["given", "default"])
def test_threads_share_a_generator(op: str, source: str, own: bool) -> None:
    """Each draw happens once: the results equal those of sequential calls in some order."""
    logits = torch.zeros(1, WIDE)
    generator = torch.Generator() if own else torch.default_generator
    knobs = {"rng": source, "generator": generator if own else None}
    count = 400 if op == "sample" else 24
    generator.manual_seed(5)
    expected = [DRAWS[op](logits, **knobs) for _ in range(count)]
    after = generator.get_state()
    generator.manual_seed(5)
    assert sorted(in_threads(lambda _: DRAWS[op](logits, **knobs), count)) == sorted(expected)
    assert generator.get_state().equal(after)


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator: sample(torch.zeros(1, 9), generator=generator),
        lambda generator: sample(torch.zeros(1, 9), rng="torch", generator=generator),
        lambda generator: sample(torch.zeros(1, 9), rng="torch", generator=generator, backend="torch"),
        lambda generator: beam_tokens(torch.zeros(1, 9), rng="torch", generator=generator),
        lambda generator: verify_draft(torch.zeros(1, 2, 9), torch.zeros(1, 1, dtype=torch.int64), generator=generator),
    ],
    ids=["seed", "torch", "reference", "beam_step", "verify_draft"],
)
def test_a_draw_waits_for_its_turn(draw: Callable[[torch.Generator], object]) -> None:
    generator, other = torch.Generator(), torch.Generator()
    before = generator.get_state()
    with rng.lock_of(generator):
        thread = threading.Thread(target=draw, args=(generator,))
        thread.start()
        draw(other)
        thread.join(0.05)
        assert thread.is_alive()
        assert generator.get_state().equal(before)
    thread.join(10)
    assert not thread.is_alive()
    assert not generator.get_state().equal(before)


def test_a_lock_belongs_to_a_generator_and_keeps_none() -> None:
    generator = torch.Generator()
    references = sys.getrefcount(generator)
    lock = rng.lock_of(generator)
    assert lock is rng.lock_of(generator) is not rng.lock_of(torch.Generator())
    # So many generators end that their ids come again.
    for _ in range(1000):
        rng.lock_of(torch.Generator())
    assert lock is rng.lock_of(generator)
    assert sys.getrefcount(generator) == references
    assert len(rng._locks) < 500


def test_reused_plans_serve_all_threads() -> None:
    """Calls have equal arguments but other tensors: none reads the tables or writes the results of another."""
    logits = [make_logits("normal", 1, WIDE, seed=number) for number in range(THREADS)]
    bias = [make_logits("normal", 1, WIDE, seed=50 + number)[0] for number in range(THREADS)]

    def call(number: int) -> tuple[list[int], bool]:
        of = number % THREADS
        tokens = sample(logits[of], top_p=0.9, bias=bias[of], seed=number).token_ids.tolist()
        scores = process_logits(logits[of], top_k=50, bias=bias[of])
        return tokens, scores.equal(expected_scores[of])

    expected_scores = [
        process_logits(row, top_k=50, bias=added, backend="torch") for row, added in zip(logits, bias, strict=True)
    ]
    results = in_threads(call, 32)
    expected = [call(number) for first in range(THREADS) for number in range(first, 32, THREADS)]
    assert results == expected
    assert all(same for _, same in results)


@pytest.mark.parametrize("prepare", [prepare_sample, prepare_process_logits])
def test_a_second_thread_inside_a_prepared_op_is_refused(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [make_logits("normal", 1, 1000, seed=number) for number in range(2)]
    prepared = prepare(logits[0], **({"seed": 1} if prepare is prepare_sample else {}))
    inside, leave = threading.Event(), threading.Event()
    run = prepared._run

    def slow(*arguments: Any) -> None:
        inside.set()
        assert leave.wait(10)
        run(*arguments)

    monkeypatch.setattr(prepared, "_run", slow)
    first = threading.Thread(target=prepared, args=(logits[0],))
    first.start()
    assert inside.wait(10)
    with pytest.raises(
        RuntimeError, match=f"`{type(prepared).__name__}` runs one call at a time, and another one is running"
    ):
        prepared(logits[1])
    leave.set()
    first.join()
    fresh = prepare(logits[0], **({"seed": 1} if prepare is prepare_sample else {}))(logits[0])
    results = [prepared.out, fresh] if isinstance(fresh, torch.Tensor) else [prepared.out[0], fresh[0]]
    assert results[0].equal(results[1])
    # No thread runs the op any more, so another may use it.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(prepared, logits[1]).result()


def test_threads_in_a_prepared_op_get_errors_or_right_tokens() -> None:
    logits = [make_logits("normal", 2, WIDE, seed=number) for number in range(THREADS)]
    expected = [sample(row, top_p=0.9, seed=1).token_ids for row in logits]
    prepared = prepare_sample(logits[0], top_p=0.9, seed=1)
    turn = threading.Lock()

    def call(number: int) -> bool:
        """A thread that waits for its turn always runs; one that does not wait is refused unless it is alone."""
        try:
            if number % 2:
                with turn:
                    return prepared(logits[number % THREADS]).token_ids.equal(expected[number % THREADS])
            prepared(logits[number % THREADS])
        except RuntimeError as error:
            assert "another one is running" in str(error)
        return True

    assert all(in_threads(lambda number: call(2 * number + 1), 48))
    in_threads(lambda number: call(2 * number), 48)
    assert call(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_prepared_op_cannot_be_copied(copied: Callable[[Any], object]) -> None:
    logits = torch.zeros(2, 9)
    state = BeamState.create(torch.zeros(1, 1, dtype=torch.int64), 2, 2)
    for prepared in (prepare_sample(logits), prepare_process_logits(logits), prepare_beam_step(logits, state)):
        with pytest.raises(TypeError, match=f"`{type(prepared).__name__}` cannot be copied or pickled"):
            copied(prepared)
