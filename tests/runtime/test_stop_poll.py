"""The protocol of a host that reads results late: no token is wrong, missing or extra."""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.decode.monitor import Recorder
from pygen.graph.late_monitor import LateMonitor
from pygen.graph.stop_poll import HostMailbox, HostRows, StepMessage, mailbox, run_ahead
from pygen.ops import DecodeState, prepare_sample

VOCAB_SIZE, EOS, PAD, PROMPT = 12, 9, 11, 2
LAGS = range(4)


class LateMailbox:
    """A slot stays empty until the host waits for it; then only that slot has its message."""

    def __init__(self, words: Tensor, slots: int) -> None:
        self._sent: dict[int, Tensor] = {}
        self._slots = slots

    def send(self, step: int, words: Tensor) -> None:
        assert step < self._slots or step - self._slots not in self._sent, (
            "a message was overwritten before it was read"
        )
        self._sent[step] = words.clone()

    def receive(self, step: int) -> Tensor:
        return self._sent.pop(step)


def scores_of(script: list[list[int]], step: int) -> Tensor:
    """Returns scores for which row r chooses script[r][step]; -1 stands for a NaN."""
    wanted = torch.tensor([row[step] for row in script])
    logits = torch.zeros(len(script), VOCAB_SIZE)
    logits[torch.arange(len(script)), wanted.clamp(min=0)] = 50.0
    logits[wanted < 0, 5] = torch.nan
    return logits


class Streamer:
    def __init__(self, cancel: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[tuple[list[int], list[str | None]]] = []
        self._cancel = cancel

    def put_step(self, tokens: Tensor, logprobs: Tensor | None, reasons: list[str | None]) -> None:
        self.steps.append((tokens.tolist(), reasons))
        self._cancel(len(self.steps) - 1)


def run(script: list[list[int]], lag: int, *, late: bool = True, **asked: Any) -> tuple[list[list[int]], Any, int]:
    """Runs rows that follow `script`, with late results; returns tokens, monitor, and number of launched steps."""
    rows, max_steps = len(script), len(script[0])
    message = StepMessage(rows, 0, torch.device("cpu"))
    state = DecodeState.create(torch.zeros(rows, PROMPT, dtype=torch.int64), max_steps, eos_token_ids=[EOS])
    state = DecodeState(**{**vars(state), "unfinished": message.unfinished, "steps": message.steps})
    message.unfinished.fill_(rows)
    state.pad_token_id = PAD
    draw = prepare_sample(scores_of(script, 0), do_sample=False, state=state, out=message.output)
    recorder = Recorder(state, max_steps, scores=False, logits=False, top_logprobs=None)
    monitor = LateMonitor(state, recorder, **asked)
    box = LateMailbox(message.words, lag + 1) if late else mailbox(message.words, lag)

    def launch(step: int) -> None:
        draw(scores_of(script, step))
        box.send(step, message.words)
        monitor.record(step, scores_of(script, step), message.output)

    def look(step: int) -> bool:
        received = message.read(box.receive(step), False)
        assert received.steps.tolist() == [step + 1] * rows
        return monitor.look(step, received, lambda number: scores_of(script, number))

    steps, launched = run_ahead(launch, look, max_steps=max_steps, lag=lag)
    return state.token_ids[:, PROMPT : PROMPT + steps].tolist(), monitor, launched


def endings(ends: tuple[int, ...], max_steps: int) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the script of rows that end at the given steps, if at all, and the expected texts."""
    script = [[EOS if step == end else (row + step) % 8 for step in range(max_steps)] for row, end in enumerate(ends)]
    steps = min(max(ends) + 1, max_steps)
    expected = [
        [token if step <= end else PAD for step, token in enumerate(row[:steps])]
        for row, end in zip(script, ends, strict=True)
    ]
    return script, expected


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("lag", LAGS)
def test_rows_that_end_at_every_step(lag: int, late: bool) -> None:
    for ends in itertools.product(range(5), repeat=2):  # 4: never
        script, expected = endings(ends, 4)
        streamer = Streamer()
        tokens, monitor, launched = run(script, lag, late=late, streamer=streamer)
        assert tokens == expected
        assert launched <= min(len(expected[0]) + lag, 4)
        assert monitor.finish_reasons() == ["eos" if end < 4 else "length" for end in ends]
        assert monitor._rows.num_generated.tolist() == [min(end + 1, 4) for end in ends]
        assert [list(step) for step, _ in streamer.steps] == [list(step) for step in zip(*expected, strict=True)]
        for step, (_, reasons) in enumerate(streamer.steps):
            over = step + 1 == len(expected[0])
            assert reasons == ["eos" if end <= step else "length" if over else None for end in ends]


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("step", range(4))
def test_cancelled_by_the_streamer_at_every_step(lag: int, step: int) -> None:
    cancel = threading.Event()
    streamer = Streamer(lambda number: cancel.set() if number == step else None)
    # A row does not end in the overshoot.
    script, _ = endings((step + 1, 9), 6)
    tokens, monitor, launched = run(script, lag, streamer=streamer, cancel=cancel)
    assert tokens == [row[: step + 1] for row in script]
    assert len(streamer.steps) == step + 1 and launched <= step + 1 + lag
    assert monitor.finish_reasons() == ["stop", "stop"]


@pytest.mark.parametrize("lag", LAGS)
def test_time_is_up(lag: int) -> None:
    script, _ = endings((9,), 6)
    tokens, monitor, _ = run(script, lag, max_time=0.0)
    assert tokens == [script[0][:1]] and monitor.finish_reasons() == ["stop"]


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("step", range(4))
def test_an_invalid_row_is_named_at_its_step(lag: int, step: int) -> None:
    script = [[1, 2, 3, 4], [5, 6, 7, 8]]
    script[1][step] = -1
    streamer = Streamer()
    with pytest.raises(RuntimeError, match=f"row 1 at step {step} hold NaN, first at token id 5;"):
        run(script, lag, streamer=streamer)
    assert len(streamer.steps) == step
    # Later results of an ended row do not matter.
    if step > 0:
        script[1][step - 1] = EOS
        tokens, _, _ = run(script, lag)
        assert tokens[1] == [5, 6, 7, 8][: step - 1] + [EOS] + [PAD] * (4 - step)


def test_only_the_steps_that_are_needed_are_launched() -> None:
    for max_steps, lag, last in itertools.product(range(1, 5), LAGS, range(5)):
        launched: list[int] = []
        steps, count = run_ahead(launched.append, functools.partial(operator.eq, last), max_steps=max_steps, lag=lag)
        assert steps == min(last + 1, max_steps)
        assert launched == list(range(count)) and count == min(steps + lag, max_steps)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("num_logprobs", [0, 3])
def test_the_parts_of_a_message_do_not_overlap(rows: int, num_logprobs: int) -> None:
    message = StepMessage(rows, num_logprobs, torch.device("cpu"))
    output = message.output
    parts: list[Tensor | None] = [message.unfinished, message.steps, output.token_ids, output.status, output.logprobs]
    for number, part in enumerate(parts):
        if part is not None:
            part.fill_(number + 1)
    box = HostMailbox(message.words, 2)
    box.send(0, message.words)
    message.words.zero_()
    received = message.read(box.receive(0), num_logprobs > 0)
    found = [received.unfinished, received.steps, received.token_ids, received.status, received.logprobs]
    for number, (part, copy) in enumerate(zip(parts, found, strict=True)):
        assert (part is None) == (copy is None)
        if part is not None and copy is not None:
            assert copy.dtype == part.dtype and copy.shape == part.shape
            assert (copy == number + 1).all()
    assert (output.top_logprobs is None) == (num_logprobs == 0)


def test_rows_as_the_host_knows_them() -> None:
    rows = HostRows(3, torch.tensor([EOS, 4]))
    for tokens in ([1, EOS, 2], [4, PAD, 2], [PAD, PAD, 3]):
        rows.advance(torch.tensor(tokens))
    assert rows.finished.tolist() == [True, True, False]
    assert rows.num_generated.tolist() == [2, 1, 3]
