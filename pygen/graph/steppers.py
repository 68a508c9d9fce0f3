"""Steppers of the decoding loop whose launch replays a captured step; see `pygen.decode.run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pygen.graph import static_beam, static_sample
from pygen.graph.captures import CapturedStep, Slot
from pygen.graph.cuda_graph import CompileOptions
from pygen.graph.generator import DeviceGeneratorState
from pygen.graph.mailbox import LAG, Received
from pygen.graph.static_beam import StaticBeam
from pygen.graph.static_sample import StaticSample
from pygen.models.inputs import GrowingInputs
from pygen.ops import BeamState, DecodeState, RowStatus
from pygen.ops.beam_step import PreparedBeamStep
from pygen.ops.sample import PreparedSample
from pygen.plan.beam_logprobs import BeamLogprobs
from pygen.plan.beam_pipeline import BeamBinding, SearchArguments
from pygen.plan.pipeline import SampleBinding, StepResult, bind_ops
from pygen.plan.plan import Plan
from pygen.plan.report import InvalidRows

if TYPE_CHECKING:
    from pygen.models.transformers import TransformersAdapter


class Captured:
    """What both steppers share.

        prefill; choose at step 0;  then for every token:  replay(forward, choose, bookkeeping)

    The adapter has been started with the slot's cache.
    """

    lag = LAG

    def __init__(
        self,
        step: CapturedStep[Any],
        logits: Tensor,
        ops: Mapping[int, PreparedSample | PreparedBeamStep],
        growing: GrowingInputs,
        length: int,
        max_steps: int,
    ) -> None:
        """logits: of the prompts, whose `length` positions the cache holds. ops: the call's, by the first step of the
        segment that each is for. The tail of `step` has taken over the call."""
        self._step, self._ops, self._logits = step, ops, logits
        self._growing, self._length = growing, length
        self._launched = self._received = 0
        state, noise = step.tail.state.generator_state, ops[0].noise
        assert noise is not None
        self._generator: DeviceGeneratorState | None = None
        if state is not None:
            self._generator = DeviceGeneratorState(noise.generator, state, logits.numel(), max_steps)

    def launch(self, step: int) -> None:
        tail = self._step.tail
        if step in self._ops:
            tail.set_knobs(self._ops[step].shaping)
        if step == 0:
            tail(self._logits)
        else:
            self._step.replay()
        self._launched = step + 1
        self._step.mailbox.send(step, tail.message.words)

    def receive(self, step: int) -> Received:
        words = self._step.mailbox.receive(step)
        self._received = step + 1
        received: Received = self._step.tail.message.read(words)
        self._last = received
        return received

    def finish(self, steps: int) -> None:
        self._step.forward.begin(self._growing, steps, self._length + steps - 1)

    def close(self) -> None:
        if self._generator is None:
            return
        over = self._step.tail.STAYS_AT_THE_END and self._received > 0 and int(self._last.unfinished) == 0
        self._generator.give_back(self._received, self._received if over else self._launched)


class CapturedSample(Captured):
    """Greedy search and sampling: the same tokens as eagerly, and the same state at the end."""

    def __init__(
        self,
        adapter: TransformersAdapter,
        state: DecodeState,
        plan: Plan,
        slot: Slot,
        *,
        record: Callable[[int, Tensor, StepResult], None],
        max_new_tokens: int,
        on_invalid: str,
        compile_options: CompileOptions | None,
        must_capture: bool,
    ) -> None:
        """record: called with step, logits and result once a step was launched."""
        logits = adapter.prefill(state.tokens(0))
        length = slot.cache.length
        ops: dict[int, PreparedSample] = bind_ops(plan, logits, SampleBinding(plan, state), max_new_tokens)
        form = static_sample.form_of(
            [*ops.values()],
            state,
            num_logprobs=plan.num_logprobs,
            num_raw_logprobs=plan.num_raw_logprobs,
            on_invalid=on_invalid,
        )
        step = slot.step(adapter, form, lambda: StaticSample(logits, form, slot.cache.capacity), compile_options)
        _, growing = adapter.decode_arguments()
        if max_new_tokens > 1:
            slot.capture(step, growing, length, must=must_capture)
        assert ops[0].noise is not None
        step.tail.begin(state, ops[0].noise)
        self._tail, self._state, self._record = step.tail, state, record
        self._raises = on_invalid == "raise"
        super().__init__(step, logits, ops, growing, length, max_new_tokens)

    def launch(self, step: int) -> None:
        super().launch(step)
        self._record(step, self._logits, StepResult(self._tail.message.output, None))

    def report(self, step: int) -> SampleReport:
        return SampleReport(step, self.receive(step), self._logits_again if self._raises else None)

    def finish(self, steps: int) -> None:
        self._tail.finish(self._state, steps, self._last if steps > 0 else None)
        super().finish(steps)

    def _logits_again(self, step: int) -> Tensor:
        """The logits of `step`, which later replays have overwritten."""
        if step == 0:
            return self._logits
        forward = self._step.forward
        forward.begin(self._growing, step, self._length + step - 1)
        return forward.logits_after(self._tail.column(step - 1))


class SampleReport:
    """The `StepReport` of a message."""

    def __init__(self, step: int, received: Received, logits_of: Callable[[int], Tensor] | None) -> None:
        """logits_of: the logits (rows, vocab_size) of a step; None where rows without a choice do not matter."""
        self.unfinished = int(received.unfinished)
        self._step, self._received, self._logits_of = step, received, logits_of

    def invalid(self) -> InvalidRows | None:
        if self._logits_of is None:
            return None
        received = self._received
        # Rows that had finished before do not matter.
        bad = (received.status != RowStatus.OK) & (received.num_generated == self._step + 1)
        found = InvalidRows.find(bad, received.status)
        return None if found is None else found.located(self._logits_of(self._step))

    def token_ids(self) -> Tensor:
        return self._received.token_ids.clone()

    def logprobs(self) -> Tensor | None:
        logprobs = self._received.logprobs
        return None if logprobs is None else logprobs.clone()

    def reasons(self) -> list[str | None]:
        return ["eos" if finished else None for finished in self._received.finished.tolist()]


class Certain(Protocol):
    """See `BeamReport.certain`, with the number of steps so far."""

    def __call__(self, generated: int, sent: int, *, with_reason: bool) -> tuple[Tensor, Tensor | None]: ...


class CapturedBeam(Captured):
    """Beam search and beam sampling: the same beams as eagerly, and the same state at the end."""

    def __init__(
        self,
        adapter: TransformersAdapter,
        state: BeamState,
        plan: Plan,
        search: SearchArguments,
        slot: Slot,
        *,
        logprobs: BeamLogprobs | None,
        gave_up: Callable[[], bool],
        certain: Certain | None,
        raises: bool,
        max_new_tokens: int,
        compile_options: CompileOptions | None,
        must_capture: bool,
    ) -> None:
        """logprobs: filled at the end; None keeps none.

        gave_up: whether every candidate of the next step ends. certain: reads `state`, which the stepper then updates
        before each report; None without a streamer. raises: whether a report has the rows without a choice.
        """
        logits = adapter.prefill(state.tokens(0))
        length = slot.cache.length
        slot.cache.share_prefix()
        ops: dict[int, PreparedBeamStep] = bind_ops(plan, logits, BeamBinding(plan, state, search), max_new_tokens)
        form = static_beam.form_of(
            [*ops.values()],
            state,
            early_stopping=search["early_stopping"],
            logprobs=logprobs,
        )
        capacity = slot.cache.capacity
        step = slot.step(adapter, form, lambda: StaticBeam(logits, form, slot.cache, capacity), compile_options)
        _, growing = adapter.decode_arguments()
        if max_new_tokens > 1:
            slot.capture(step, growing, length, must=must_capture)
        step.tail.begin(state, ops[0])
        self.lag = LAG if certain is None else 0
        self._tail, self._state, self._logprobs = step.tail, state, logprobs
        self._gave_up, self._certain, self._raises = gave_up, certain, raises
        super().__init__(step, logits, ops, growing, length, max_new_tokens)

    def launch(self, step: int) -> None:
        if self._gave_up():
            self._tail.stop_after(step + 1)
        super().launch(step)

    def report(self, step: int) -> BeamMessageReport:
        received = self.receive(step)
        if self._certain is not None:
            self._take_over(step + 1)
        return BeamMessageReport(step, received, self._certain, raises=self._raises)

    def finish(self, steps: int) -> None:
        self._take_over(steps)
        super().finish(steps)

    def _take_over(self, steps: int) -> None:
        self._tail.finish(self._state, steps)
        if self._logprobs is not None and self._tail.logprobs is not None:
            self._logprobs.take_over(self._tail.logprobs, steps)


class BeamMessageReport:
    """The `BeamReport` of a message."""

    def __init__(self, step: int, received: Received, certain: Certain | None, *, raises: bool) -> None:
        self.unfinished = int(received.unfinished)
        self._step, self._status, self._certain, self._raises = step, received.status, certain, raises

    def invalid(self) -> InvalidRows | None:
        return InvalidRows.find(self._status != RowStatus.OK, self._status) if self._raises else None

    def certain(self, sent: int, *, with_reason: bool) -> tuple[Tensor, Tensor | None]:
        assert self._certain is not None
        return self._certain(self._step + 1, sent, with_reason=with_reason)
