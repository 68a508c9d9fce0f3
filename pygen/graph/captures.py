"""The captured steps of models: kept outside of them, and no longer than they live."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from pygen.backends import BackendError
from pygen.graph.cuda_graph import CAPTURES, Capture, CompileOptions, Launches, Part
from pygen.graph.mailbox import Mailbox, mailbox
from pygen.graph.recording import empty_cache
from pygen.graph.releasing import on_release
from pygen.graph.static_beam import StaticBeam
from pygen.graph.static_cache import StaticCache
from pygen.graph.static_encoder import EncoderSize
from pygen.graph.static_forward import StaticForward, fixed_arguments
from pygen.graph.static_sample import StaticSample
from pygen.models.inputs import GrowingInputs
from pygen.notices import log

if TYPE_CHECKING:
    from pygen.models.transformers import TransformersAdapter

logger = logging.getLogger(__name__)

# Slots kept per model, each with a cache; beyond this the least recently used slot is evicted.
_MAX_SLOTS = 4


# What follows the forward in a captured step: it chooses the next tokens and does their bookkeeping.
StepTail = TypeVar("StepTail", bound="StaticSample | StaticBeam")


class CapturedStep(Generic[StepTail]):
    """Forward, choice and bookkeeping over static buffers; captured on first use."""

    def __init__(self, forward: StaticForward, tail: StepTail) -> None:
        self.forward, self.tail = forward, tail
        self.mailbox: Mailbox = mailbox(tail.message.words)
        self._capture: Capture | None = None

    def replay(self) -> None:
        assert self._capture is not None
        self._capture.replay()

    def ensure_captured(self, growing: GrowingInputs, length: int, pool: object, *, must: bool) -> None:
        """Leaves the tail's state undefined, and the forward before the first generated token of `length` positions.

        A step that turns out not to be capturable is a BackendError where it `must` be, and launched each time, with a
        warning, where not.
        """

        def restore() -> None:
            self.forward.begin(growing, 1, length)

        restore()
        if self._capture is None:
            tokens = self.tail.message.output.token_ids.zero_()
            kind = CAPTURES[tokens.device.type]
            parts: list[Part] = [functools.partial(self.forward.run, tokens), self._choose]
            try:
                self._capture = kind(parts, restore, pool)
            except Exception as error:
                if must:
                    raise BackendError(f"`runtime`='graph' cannot run here: the capture failed, {error}") from error
                log(logger, f"The step could not be captured and is launched for every token: {error}")
                self._capture = Launches(parts)
            restore()

    def _choose(self) -> None:
        self.tail(self.forward.logits)


class Slot:
    """One cache, and the steps that were captured over it. Taken by one call at a time."""

    def __init__(self, model: Any, rows: int, capacity: int, encoder: EncoderSize) -> None:
        positions = encoder if isinstance(encoder, int) else None
        self.cache = StaticCache.for_model(model, rows=rows, capacity=capacity, encoder_positions=positions)
        self._steps: dict[Hashable, CapturedStep[Any]] = {}
        self._lock = threading.Lock()
        self._pool = CAPTURES[model.device.type].new_pool(model.device)
        self._left: torch.cuda.Event | None = None

    def take(self) -> bool:
        """Whether the slot was free; it is the caller's then, until `taken` ends."""
        return self._lock.acquire(blocking=False)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The call that has taken the slot: the cache is empty when it begins.

        Work of it may still be queued when it ends; that of the next call waits for it, on whatever stream.
        """
        device = self.cache.device_length.device
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                if self._left is not None:
                    torch.cuda.current_stream(device).wait_event(self._left)
                self.cache.reset()
                try:
                    yield
                finally:
                    if device.type == "cuda":
                        self._left = torch.cuda.Event()
                        self._left.record(torch.cuda.current_stream(device))
        finally:
            self._lock.release()

    def step(
        self,
        adapter: TransformersAdapter,
        form: Hashable,
        make_tail: Callable[[], StepTail],
        compile_options: CompileOptions | None,
    ) -> CapturedStep[StepTail]:
        """The step for calls whose tail has this form; `adapter` has read its prompt."""
        key = (form, repr(compile_options), fixed_arguments(adapter))
        if key not in self._steps:
            self._steps[key] = CapturedStep(StaticForward(adapter, self.cache, compile_options), make_tail())
        step = self._steps[key]
        step.forward.take_over(adapter)
        return step

    def capture(self, step: CapturedStep[Any], growing: GrowingInputs, length: int, *, must: bool) -> None:
        """See `CapturedStep.ensure_captured`."""
        step.ensure_captured(growing, length, self._pool, must=must)


_Slots = OrderedDict[tuple[int, int, EncoderSize], Slot]
_slots: weakref.WeakKeyDictionary[torch.nn.Module, _Slots] = weakref.WeakKeyDictionary()
_slots_lock = threading.Lock()


def take_slot(model: torch.nn.Module, rows: int, capacity: int, encoder: EncoderSize = None) -> Slot | None:
    """A slot for calls of `rows` rows and at most `capacity` positions; None where another call is using it.

    `model`: of transformers, without a wrapper. encoder: see `encoder_size`. Raises CacheRefused.
    """
    size = (rows, capacity, encoder)
    with _slots_lock:
        slots = _slots.setdefault(model, OrderedDict())
        slot = slots.get(size)
        if slot is None:
            slot = slots[size] = Slot(model, rows, capacity, encoder)
            while len(slots) > _MAX_SLOTS:
                slots.popitem(last=False)
        slots.move_to_end(size)
        return slot if slot.take() else None


def has_slot(model: torch.nn.Module, rows: int, capacity: int, encoder: EncoderSize = None) -> bool:
    """Whether calls of this size have run captured."""
    return (rows, capacity, encoder) in _slots.get(model, {})


def drop(model: Any) -> None:
    """See `pygen.release`."""
    with _slots_lock:
        slots = _slots.pop(model, None) if isinstance(model, torch.nn.Module) else None
    if slots and model.device.type == "cuda":
        slots.clear()
        empty_cache()


on_release(drop)
