"""The prepared form of an op: arguments checked once, then called per step with new logits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._noise import Noise
from pygen.ops._numbers import STEP_LIMIT
from pygen.ops._plain import is_plain
from pygen.ops._shaping import Shaping
from pygen.ops._traced import outside_graphs

if TYPE_CHECKING:
    from pygen.ops._beam_state import BeamState
    from pygen.ops._state import DecodeState

# A backend turns checked arguments into a function (logits, step, length) -> None, which writes into fixed outputs.
Run = Callable[[Tensor, int, int], None]

Output = TypeVar("Output")


class Prepared(Generic[Output]):
    """`prepared(logits, *, step=0, length=None)` runs one step and returns `prepared.out`, the same tensors every time.

    logits: shape, dtype, device and contiguous last dimension as in preparation; the rows may have another stride.
    step: tokens generated so far, an int in [0, 2**32); with a state, the column to write must exist. A state with a
        step counter ignores it.
    length: columns of `input_ids` in use; default all, or with a state its prompt length + step.

    Every call reads the tables of the preparation again (input_ids, bias, suppress, token_bitmask, noise, a tensor
    `step`), so that callers can change them in place. `shaping` and `noise` hold copies of per-row knobs and seeds.

    A prepared op reuses its outputs, so each thread needs its own. Threads may pass one on. A call while another one
    runs raises RuntimeError and changes nothing. A prepared op holds addresses of tensors, so it cannot be copied or
    pickled.
    """

    __slots__ = (
        "_capacity",
        "_device",
        "_dtype",
        "_growth",
        "_kept",
        "_last_step",
        "_length",
        "_run",
        "_shape",
        "_turn",
        "_widened",
        "backend",
        "noise",
        "out",
        "shaping",
    )

    def __init__(
        self,
        logits: Tensor,
        run: Run,
        out: Output,
        backend: str,
        shaping: Shaping,
        state: DecodeState | BeamState | None,
        noise: Noise | None = None,
    ) -> None:
        self.out = out
        # Kernels access these tensors through pointers, and the caller may drop them.
        self.shaping, self.noise = shaping, noise
        self._turn = threading.Lock()
        self._widened = shaping.widened
        self._kept = () if state is None else tuple(vars(state).values())
        self.backend = backend
        self._run = run if shaping.like.rows > 0 else _nothing_to_do
        self._shape = logits.shape
        self._dtype = logits.dtype
        self._device = logits.device
        self._capacity = shaping.history_length
        self._last_step = STEP_LIMIT - 1
        self._length = self._capacity
        self._growth = 0
        if state is not None:
            self._last_step = state.token_ids.shape[1] - state.prompt_length - 1
            self._length = state.prompt_length
            self._growth = 1
            if getattr(state, "steps", None) is not None:
                self._last_step = STEP_LIMIT - 1
                self._growth = 0

    @outside_graphs("a prepared op holds addresses: call the op itself inside the graph")
    def __call__(self, logits: Tensor, *, step: int = 0, length: int | None = None) -> Output:
        # One condition costs about a microsecond. The messages are built only if it fails.
        if not (
            type(logits) is Tensor
            and is_plain(logits)
            and logits.shape == self._shape
            and logits.dtype is self._dtype
            and logits.device == self._device
            and logits.stride()[1] == 1  # half the time of `stride(1)`
            and type(step) is int
            and 0 <= step <= self._last_step
        ):
            self._check_call(logits, step)
        if length is None:
            length = self._length + self._growth * step
        elif not (type(length) is int and 0 <= length <= self._capacity):
            checks.count_up_to("length", length, self._capacity)
        if not self._turn.acquire(False):
            name = type(self).__name__
            raise RuntimeError(
                f"`{name}` runs one call at a time, and another one is running: prepare an op for each thread"
            )
        try:
            for table, source in self._widened:
                table.copy_(source)
            self._run(logits, step, length)
        finally:
            self._turn.release()
        return self.out

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"`{name}` cannot be copied or pickled, it holds addresses of tensors: prepare another one")

    def _check_call(self, logits: Tensor, step: int) -> None:
        checks.check_tensor("logits", logits)
        checks.check_dtype("logits", logits, self._dtype)
        checks.check_shape("logits", logits, "(rows, vocab_size)", tuple(self._shape))
        if logits.device != self._device:
            raise ValueError(f"`logits` must be on {self._device} as in preparation, got {logits.device}")
        checks.check_last_stride("logits", logits)
        checks.count_up_to("step", step, self._last_step)


def _nothing_to_do(logits: Tensor, step: int, length: int) -> None:
    """Runs a call without rows."""


def detached(run: Run) -> Run:
    """Returns `run` without autograd."""

    def run_detached(logits: Tensor, step: int, length: int) -> None:
        with torch.no_grad():
            run(logits, step, length)

    return run_detached
