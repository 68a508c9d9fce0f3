"""The protocol of a host that reads results late: no token is wrong, missing or extra."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.decode.monitor import Monitor
from pygen.decode.run import run
from pygen.graph.mailbox import HostMailbox, StepMessage, mailbox
from pygen.graph.steppers import SampleReport
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


class ScriptStepper:
    """Rows that follow `script`, with late messages."""

    def __init__(self, script: list[list[int]], lag: int, *, late: bool) -> None:
        rows, max_steps = len(script), len(script[0])
        self.lag, self.launched = lag, 0
        self._script = script
        self._message = message = StepMessage(rows, 0, torch.device("cpu"))
        state = DecodeState.create(torch.zeros(rows, PROMPT, dtype=torch.int64), max_steps, eos_token_ids=[EOS])
        own = {name: getattr(message, name) for name in ("unfinished", "steps", "num_generated", "finished")}
        self.state = DecodeState(**{**vars(state), **own, "pad_token_id": PAD})
        message.unfinished.fill_(rows)
        self._draw = prepare_sample(scores_of(script, 0), do_sample=False, state=self.state, out=message.output)
        self._box = LateMailbox(message.words, lag + 1) if late else mailbox(message.words, lag)
        self.finished: int | None = None
        self.closed = False

    def launch(self, step: int) -> None:
        self._draw(scores_of(self._script, step))
        self._box.send(step, self._message.words)
        self.launched += 1

    def report(self, step: int) -> SampleReport:
        self.received = self._message.read(self._box.receive(step))
        assert self.received.steps.tolist() == [step + 1] * len(self._script)
        return SampleReport(step, self.received, lambda number: scores_of(self._script, number))

    def finish(self, steps: int) -> None:
        self.finished = steps

    def close(self) -> None:
        self.closed = True


def decode(
    script: list[list[int]], lag: int, *, late: bool = True, **asked: Any
) -> tuple[list[list[int]], Monitor, ScriptStepper]:
    """The tokens, the monitor and the stepper of a run."""
    stepper = ScriptStepper(script, lag, late=late)
    max_steps = len(script[0])
    monitor = Monitor(len(script), max_steps, **asked)
    try:
        steps = run(stepper, monitor, max_steps=max_steps)
    finally:
        assert stepper.closed
    assert stepper.finished == steps
    return stepper.state.token_ids[:, PROMPT : PROMPT + steps].tolist(), monitor, stepper


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
        tokens, monitor, stepper = decode(script, lag, late=late, streamer=streamer)
        assert tokens == expected
        assert stepper.launched <= min(len(expected[0]) + lag, 4)
        assert monitor.finish_reasons() == ["eos" if end < 4 else "length" for end in ends]
        assert stepper.received.num_generated.tolist() == [min(end + 1, 4) for end in ends]
        assert stepper.received.finished.tolist() == [end < 4 for end in ends]
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
    tokens, monitor, stepper = decode(script, lag, streamer=streamer, cancel=cancel)
    assert tokens == [row[: step + 1] for row in script]
    assert len(streamer.steps) == step + 1 and stepper.launched <= step + 1 + lag
    assert monitor.finish_reasons() == ["stop", "stop"]


@pytest.mark.parametrize("lag", LAGS)
def test_time_is_up(lag: int) -> None:
    script, _ = endings((9,), 6)
    tokens, monitor, _ = decode(script, lag, max_time=0.0)
    assert tokens == [script[0][:1]] and monitor.finish_reasons() == ["stop"]


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("step", range(4))
def test_an_invalid_row_is_named_at_its_step(lag: int, step: int) -> None:
    script = [[1, 2, 3, 4], [5, 6, 7, 8]]
    script[1][step] = -1
    streamer = Streamer()
    with pytest.raises(RuntimeError, match=f"row 1 at step {step} hold NaN, first at token id 5;"):
        decode(script, lag, streamer=streamer)
    assert len(streamer.steps) == step
    # Later results of an ended row do not matter.
    if step > 0:
        script[1][step - 1] = EOS
        tokens, _, _ = decode(script, lag)
        assert tokens[1] == [5, 6, 7, 8][: step - 1] + [EOS] + [PAD] * (4 - step)


class CountingStepper:
    """Launches nothing; its report is the number of the step, or an error at step `fails`."""

    def __init__(self, lag: int, fails: int = -1) -> None:
        self.lag, self._fails = lag, fails
        self.calls: list[tuple[str, int]] = []

    def launch(self, step: int) -> None:
        self.calls.append(("launch", step))

    def report(self, step: int) -> int:
        if step == self._fails:
            raise RuntimeError("no report")
        return step

    def finish(self, steps: int) -> None:
        self.calls.append(("finish", steps))

    def close(self) -> None:
        self.calls.append(("close", 0))


class LastStep:
    def __init__(self, last: int) -> None:
        self._last = last

    def look(self, step: int, report: int) -> bool:
        assert report == step
        return step == self._last


def test_only_the_steps_that_are_needed_are_launched() -> None:
    for max_steps, lag, last in itertools.product(range(5), LAGS, range(5)):
        stepper = CountingStepper(lag)
        steps = run(stepper, LastStep(last), max_steps=max_steps)
        assert steps == min(last + 1, max_steps)
        launches = [("launch", step) for step in range(min(steps + lag, max_steps))]
        assert stepper.calls == [*launches, ("finish", steps), ("close", 0)]


def test_a_stepper_that_failed_is_closed() -> None:
    stepper = CountingStepper(1, fails=2)
    with pytest.raises(RuntimeError, match="no report"):
        run(stepper, LastStep(9), max_steps=5)
    assert stepper.calls == [("launch", step) for step in range(4)] + [("close", 0)]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("num_logprobs", [0, 3])
def test_the_parts_of_a_message_do_not_overlap(rows: int, num_logprobs: int) -> None:
    message = StepMessage(rows, num_logprobs, torch.device("cpu"))
    output = message.output
    parts: list[Tensor | None] = [message.unfinished, message.steps, message.num_generated, message.finished]
    parts += [output.token_ids, output.status, output.logprobs]
    for number, part in enumerate(parts):
        if part is not None:
            part.fill_(number + 1)
    box = HostMailbox(message.words, 2)
    box.send(0, message.words)
    message.words.zero_()
    received = message.read(box.receive(0))
    found: list[Tensor | None] = [received.unfinished, received.steps, received.num_generated, received.finished]
    found += [received.token_ids, received.status, received.logprobs]
    for number, (part, copy) in enumerate(zip(parts, found, strict=True)):
        assert (part is None) == (copy is None)
        if part is not None and copy is not None:
            assert copy.dtype == part.dtype and copy.shape == part.shape
            assert (copy == (True if copy.dtype == torch.bool else number + 1)).all()
    assert (output.top_logprobs is None) == (num_logprobs == 0)
