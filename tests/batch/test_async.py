"""Handles in event loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import pygen
from tests.batch.models import small_model
from tests.batch.texts import prompts, tokens_alone


async def tokens_of(handle: pygen.BatchHandle) -> list[int]:
    return [event.token_id async for event in handle]


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, timeout=120))


def test_iterating_and_awaiting_many_handles_at_once() -> None:
    async def main(engine: pygen.Engine) -> tuple[list[list[int]], list[pygen.BatchResult]]:
        handles = [engine.submit(prompt) for prompt in prompts()]

        async def result(handle: pygen.BatchHandle) -> pygen.BatchResult:
            return await handle

        tokens = asyncio.gather(*map(tokens_of, handles))
        results = asyncio.gather(*map(result, handles))
        return await tokens, await results

    with pygen.Engine(small_model("llama"), rows=3, max_queued=9) as engine:
        tokens, results = run(main(engine))
    assert tokens == [tokens_alone(index) for index in range(6)]
    assert [result.token_ids for result in results] == tokens


def test_an_error_is_raised_after_the_tokens() -> None:
    def fail(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == 4:
            raise KeyError("by the criterion")
        return False

    async def main(engine: pygen.Engine) -> list[int]:
        handle = engine.submit([1, 2], max_new_tokens=5, stopping_criteria=[fail])
        tokens = []
        with pytest.raises(KeyError, match="by the criterion"):
            async for event in handle:
                tokens.append(event.token_id)
        assert (await handle).token_ids[:1] == tokens
        return tokens

    with pygen.Engine(small_model("llama")) as engine:
        assert len(run(main(engine))) == 1


def test_a_cancelled_task_and_a_closed_loop_leave_the_engine_at_work() -> None:
    async def main(engine: pygen.Engine) -> pygen.BatchHandle:
        handle = engine.submit([1, 2], max_new_tokens=100)
        waiting = asyncio.create_task(tokens_of(handle))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # Still waits when the loop is closed.
        waiting = asyncio.create_task(tokens_of(handle))
        await asyncio.sleep(0)
        return handle

    with pygen.Engine(small_model("llama")) as engine:
        handle = asyncio.run(main(engine))
        assert len(handle.result(timeout=60).token_ids) == 100
        assert engine.submit([1], max_new_tokens=1).result(timeout=60).error is None
