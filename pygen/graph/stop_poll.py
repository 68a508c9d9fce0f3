"""How the host follows steps that it does not wait for: messages that arrive one step late, and the overshoot."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pygen.ops import SampleOutput, TopLogprobs

# How many steps the host launches ahead of the one whose message it reads. One keeps the device busy while the host
# looks; each more could be one more to take back.
LAG = 1


class StepMessage:
    """What a step tells the host, in one stretch of device memory, so that one copy takes all of it.

    unfinished, steps, output.token_ids, output.status and output.logprobs are views of `words`, which the step's op
    writes as its outputs; `output.top_logprobs` stays on the device.

        words (int64): unfinished | steps (rows) | token_ids (rows) | status (rows int32) | logprobs (rows float32)
    """

    def __init__(self, rows: int, num_logprobs: int, device: torch.device) -> None:
        halves = (rows + 1) // 2
        self.words = torch.zeros(1 + 2 * rows + halves * (1 + (num_logprobs > 0)), dtype=torch.int64, device=device)
        self._rows, self._halves = rows, halves
        self.unfinished = self.words[:1]
        self.steps = self.words[1 : 1 + rows]
        received = self.read(self.words, num_logprobs > 0)
        top = None
        if num_logprobs > 0:
            ids = torch.empty((rows, num_logprobs), dtype=torch.int64, device=device)
            top = TopLogprobs(ids, torch.empty((rows, num_logprobs), dtype=torch.float32, device=device))
        self.output = SampleOutput(received.token_ids, received.logprobs, top, received.status)

    def read(self, words: Tensor, with_logprobs: bool) -> Received:
        """The parts of a copy of `words`."""
        rows, at = self._rows, 1 + 2 * self._rows
        status = words[at : at + self._halves].view(torch.int32)[:rows]
        logprobs = words[at + self._halves :].view(torch.float32)[:rows] if with_logprobs else None
        return Received(words[:1], words[1 : 1 + rows], words[1 + rows : at], status, logprobs)


@dataclass(frozen=True)
class Received:
    """A step's message: unfinished (1,) int64 and steps (rows,) int64 after the step; token_ids (rows,) int64, status
    (rows,) int32 and logprobs (rows,) float32 or None of the step."""

    unfinished: Tensor
    steps: Tensor
    token_ids: Tensor
    status: Tensor
    logprobs: Tensor | None


class Mailbox(Protocol):
    """A ring of slots in memory of the host. A message may be read once, before as many others were sent."""

    def send(self, step: int, words: Tensor) -> None:
        """Queues a copy of what `words` will hold when the device gets here."""
        ...

    def receive(self, step: int) -> Tensor:
        """The copy that `send(step, ...)` made, once it is there."""
        ...


class HostMailbox:
    """For a device whose work is done when a call returns."""

    def __init__(self, words: Tensor, slots: int) -> None:
        self._slots = [torch.empty_like(words) for _ in range(slots)]

    def send(self, step: int, words: Tensor) -> None:
        self._slots[step % len(self._slots)].copy_(words)

    def receive(self, step: int) -> Tensor:
        return self._slots[step % len(self._slots)]


class CudaMailbox:
    """Pinned slots, filled by copies that the host does not wait for, and an event behind each copy, which it polls."""

    def __init__(self, words: Tensor, slots: int) -> None:
        self._slots = [torch.empty(words.shape, dtype=words.dtype, pin_memory=True, device="cpu") for _ in range(slots)]
        self._arrived = [torch.cuda.Event() for _ in range(slots)]

    def send(self, step: int, words: Tensor) -> None:
        slot = step % len(self._slots)
        self._slots[slot].copy_(words, non_blocking=True)
        self._arrived[slot].record()

    def receive(self, step: int) -> Tensor:
        slot = step % len(self._slots)
        # No call that blocks: what it takes to wake up would be added to every token.
        while not self._arrived[slot].query():
            time.sleep(0)
        return self._slots[slot]


def mailbox(words: Tensor, lag: int = LAG) -> Mailbox:
    """A ring for messages like `words` that holds those of `lag` steps ahead."""
    kind = CudaMailbox if words.device.type == "cuda" else HostMailbox
    return kind(words, lag + 1)


def run_ahead(
    launch: Callable[[int], None], look: Callable[[int], bool], *, max_steps: int, lag: int = LAG
) -> tuple[int, int]:
    """Runs steps until one of them was the last, and returns how many count and how many were launched.

        for step in 0, 1, ...:
            launch every step up to step + lag that was not
            if look(step): the rest are overshoot

    launch: queues a step, and the sending of its message. look: waits for the message of a step; True ends the run.
    At most `lag` steps are overshoot, and none after `max_steps`.
    """
    launched = 0
    for step in range(max_steps):
        while launched < min(step + 1 + lag, max_steps):
            launch(launched)
            launched += 1
        if look(step):
            return step + 1, launched
    return max_steps, launched


class HostRows:
    """What the host knows of the rows from the messages it has read: where they ended, without asking the device.

    finished: (rows,) bool. num_generated: (rows,) int64, the end-of-sequence token included. Both on the CPU.
    """

    def __init__(self, rows: int, eos_token_ids: Tensor | None) -> None:
        """`eos_token_ids`: (n,) int64 on the CPU, or None where no token ends a row."""
        self.finished = torch.zeros(rows, dtype=torch.bool, device="cpu")
        self.num_generated = torch.zeros(rows, dtype=torch.int64, device="cpu")
        self._eos_token_ids = eos_token_ids

    def advance(self, token_ids: Tensor) -> None:
        """Takes in the tokens of the next step, (rows,) int64 on the CPU."""
        self.num_generated += ~self.finished
        if self._eos_token_ids is not None:
            self.finished |= torch.isin(token_ids, self._eos_token_ids)
