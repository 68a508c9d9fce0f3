"""How the host follows steps that it does not wait for: each sends a message, which is read one step late."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pygen.ops import SampleOutput, TopLogprobs
from pygen.ops._kept_tokens import empty_kept

# How many steps the host launches ahead of the one whose message it reads. One keeps the device busy while the host
# looks; each more could be one more to take back.
LAG = 1


class StepMessage:
    """The report of a step to the host, in contiguous device memory, so that one copy takes all of it.

    Every field but `output.top_logprobs` and `output.kept` is a view of `words`. The step's op writes them as its
    outputs, or as parts of its state; a step of beams leaves `num_generated`, `finished` and `output.logprobs` as they
    are.

        words (int64): unfinished | steps (rows) | num_generated (rows) | token_ids (rows) | status (rows int32)
            | finished (rows bool) | logprobs (rows float32)
    """

    def __init__(self, rows: int, num_logprobs: int, device: torch.device, kept_width: int = 0) -> None:
        self._rows, self._has_logprobs = rows, num_logprobs > 0
        self._sizes = [1, rows, rows, rows, _words(rows, 4), _words(rows, 1), _words(rows, 4) * self._has_logprobs]
        self.words = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        fields = self.read(self.words)
        self.unfinished, self.steps = fields.unfinished, fields.steps
        self.num_generated, self.finished = fields.num_generated, fields.finished
        top = None
        if num_logprobs > 0:
            ids = torch.empty((rows, num_logprobs), dtype=torch.int64, device=device)
            top = TopLogprobs(ids, torch.empty((rows, num_logprobs), dtype=torch.float32, device=device))
        kept = empty_kept(rows, kept_width, device) if kept_width > 0 else None
        self.output = SampleOutput(fields.token_ids, fields.logprobs, top, fields.status, kept)

    def read(self, words: Tensor) -> Received:
        """The fields of a copy of `words`."""
        unfinished, steps, num_generated, token_ids, status, finished, logprobs = words.split(self._sizes)
        return Received(
            unfinished=unfinished,
            steps=steps,
            num_generated=num_generated,
            token_ids=token_ids,
            status=status.view(torch.int32)[: self._rows],
            finished=finished.view(torch.bool)[: self._rows],
            logprobs=logprobs.view(torch.float32)[: self._rows] if self._has_logprobs else None,
        )


def _words(count: int, size: int) -> int:
    """int64 words for `count` numbers of `size` bytes."""
    return -(-count * size // 8)


@dataclass(frozen=True)
class Received:
    """A step's message: unfinished (1,) int64, steps and num_generated (rows,) int64 and finished (rows,) bool after
    the step; token_ids (rows,) int64, status (rows,) int32 and logprobs (rows,) float32 or None of the step."""

    unfinished: Tensor
    steps: Tensor
    num_generated: Tensor
    token_ids: Tensor
    status: Tensor
    finished: Tensor
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
        self._arrived[slot].record(torch.cuda.current_stream(words.device))

    def receive(self, step: int) -> Tensor:
        slot = step % len(self._slots)
        # A blocking call would add its wake-up time to every token.
        while not self._arrived[slot].query():
            time.sleep(0)
        return self._slots[slot]


def mailbox(words: Tensor, lag: int = LAG) -> Mailbox:
    """A ring for messages like `words` that holds those of `lag` steps ahead."""
    kind = CudaMailbox if words.device.type == "cuda" else HostMailbox
    return kind(words, lag + 1)
