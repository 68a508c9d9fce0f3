"""An engine that many threads use at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import pygen
from tests.batch.alone import differences
from tests.batch.models import small_model
from tests.batch.texts import ActingCriterion, prompts, tokens_alone


class Gate:
    """A criterion that holds the engine's thread until it is opened."""

    def __init__(self) -> None:
        self.is_reached, self._is_open = threading.Event(), threading.Event()

    def open(self) -> None:
        self._is_open.set()

    def __call__(self, input_ids: Any, scores: Any) -> bool:
        self.is_reached.set()
        assert self._is_open.wait(60)
        return False


def held(engine: pygen.Engine, count: int) -> tuple[Gate, list[pygen.BatchHandle]]:
    """Submits `count` prompts, of which the first holds the engine's thread."""
    gate = Gate()
    handles = [engine.submit([1, 2, 3], max_new_tokens=3, stopping_criteria=[gate])]
    assert gate.is_reached.wait(60)
    return gate, handles + [engine.submit([4 + n], max_new_tokens=3) for n in range(count - 1)]


def test_eight_threads_submit_at_once() -> None:
    model, wrong = small_model("llama"), list[str]()

    def submit(thread: int) -> None:
        for number in range(4):
            seed = 10 * thread + number
            prompt = {
                "input_ids": [thread + 1, number],
                "do_sample": True,
                "seed": seed,
                "max_new_tokens": 1 + seed % 7,
            }
            handle = engine.submit(prompt)
            tokens = [event.token_id for event in handle]
            wrong.extend(differences(model, prompt, handle.results(timeout=60)))
            assert tokens == handle.result().token_ids

    with pygen.Engine(model, rows=5, max_queued=2) as engine:
        threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive()
    assert not wrong
    assert engine.stats.tokens == sum(1 + (10 * t + n) % 7 for t in range(8) for n in range(4))


def test_submit_waits_for_space() -> None:
    with pygen.Engine(small_model("llama"), rows=1, max_queued=2) as engine:
        gate, handles = held(engine, 3)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="2 prompts .`max_queued`. still wait after 0.05 s"):
            engine.submit([1], timeout=0.05, max_new_tokens=1)
        assert time.monotonic() - began >= 0.05
        with pytest.raises(TimeoutError):
            engine.submit([1], timeout=0)
        with pytest.raises(TimeoutError, match="prompt 1 has not ended within 0.01 s"):
            handles[1].result(timeout=0.01)
        late: list[pygen.BatchHandle] = []
        waiting = threading.Thread(target=lambda: late.append(engine.submit([9], max_new_tokens=2)))
        waiting.start()
        gate.open()
        waiting.join(timeout=60)
        assert len(late[0].result(timeout=60).token_ids) == 2
    assert all(handle.is_done for handle in handles)


def test_close_waits_for_all_and_refuses_more() -> None:
    engine = pygen.Engine(small_model("llama"), rows=2)
    handles = [engine.submit(prompt) for prompt in prompts()]
    engine.close()
    assert [handle.result(timeout=0).token_ids for handle in handles] == [tokens_alone(n) for n in range(6)]
    with pytest.raises(RuntimeError, match="the engine takes no more prompts: it was closed"):
        engine.submit([1])
    engine.close()


def test_close_refuses_a_prompt_that_waits_for_space() -> None:
    engine = pygen.Engine(small_model("llama"), rows=1, max_queued=1)
    gate, handles = held(engine, 2)
    errors: list[Exception] = []

    def submit() -> None:
        try:
            engine.submit([1])
        except RuntimeError as error:
            errors.append(error)

    waiting = threading.Thread(target=submit)
    waiting.start()
    closing = threading.Thread(target=engine.close)
    closing.start()
    waiting.join(timeout=60)
    assert "it was closed" in str(errors[0])
    gate.open()
    closing.join(timeout=60)
    assert all(handle.is_done for handle in handles)


@pytest.mark.parametrize("means", ["close", "exception"])
def test_what_runs_and_waits_is_cancelled(means: str) -> None:
    gate = None
    try:
        with pygen.Engine(small_model("llama"), rows=1, max_queued=9) as engine:
            gate, handles = held(engine, 4)
            threading.Timer(0.05, gate.open).start()
            if means == "exception":
                raise KeyError
            engine.close(cancel=True)
    except KeyError:
        pass
    results = [handle.result(timeout=60) for handle in handles]
    assert [result.finish_reason for result in results] == ["cancelled"] * 4
    assert len(results[0].token_ids) > 0 and not any(result.token_ids for result in results[1:])
    assert list(handles[3]) == []


def test_a_prompt_that_waits_is_cancelled_at_once() -> None:
    with pygen.Engine(small_model("llama"), rows=1, max_queued=9) as engine:
        handles = [engine.submit([1 + n], max_new_tokens=100) for n in range(4)]
        handles[3].cancel()
        assert handles[3].result(timeout=60).finish_reason == "cancelled"
        assert not handles[2].is_done
        for handle in handles:
            handle.cancel()
    assert handles[3].result().token_ids == []


def test_a_callable_that_closes_the_engine_ends_its_prompt_alone() -> None:
    engine = pygen.Engine(small_model("llama"), rows=2)
    closing = engine.submit([1, 2], max_new_tokens=4, stopping_criteria=[ActingCriterion(engine.close, 1, 2)])
    assert isinstance(closing.result(timeout=60).error, RuntimeError)
    with pytest.raises(RuntimeError, match="it was closed"):
        engine.submit([1])
    engine.close()


def test_an_idle_engine_does_not_keep_the_process() -> None:
    code = (
        "import pygen; from tests.batch.models import small_model; engine = pygen.Engine(small_model('llama'));"
        "print(engine.submit([1], max_new_tokens=2).result().finish_reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "length\n"), done.stderr
