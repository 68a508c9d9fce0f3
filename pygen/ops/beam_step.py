"""One step of beam search or beam sampling: from the model's logits to the next tokens and their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.knobs import FloatKnob, IntKnob, ShapingKnobs
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _numbers as numbers
from pygen.ops import _traced as traced
from pygen.ops._beam_call import BeamCall, BeamWorkspace, StoppingCriteria
from pygen.ops._beam_state_checks import beam_state_arguments, check_beam_state, check_is_beam_state, check_search
from pygen.ops._noise import check_noise
from pygen.ops._outputs import BeamStepOutput, check_beam_out, empty_beam_output
from pygen.ops._prepared import Prepared, Run, detached
from pygen.ops._shaping import TokenIds, check_shaping
from pygen.ops._signature import implemented_by
from pygen.ops._state_checks import generator_of
from pygen.ops._traced import is_tracing, outside_graphs
from pygen.rng import lock_of, seed_given_back

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pygen.ops._beam_state import BeamState


class PreparedBeamStep(Prepared[BeamStepOutput]):
    """`beam_step` with all arguments fixed but the logits; see `Prepared`.

    normalisers: (2, max_new_tokens) float32, the divisors of scores after step t:

        [0, t] divides a hypothesis that ends at step t: (t + 1) ** length_penalty
        [1, t] divides the best running beam, for the comparison with finished hypotheses: the same, or with "never" and
            length_penalty > 0, max_new_tokens ** length_penalty

        Every call reads them again, so that callers can change them in place.
    sorts_draws: whether candidates are drawn, and sorted.
    """

    __slots__ = ("normalisers", "sorts_draws")

    def __init__(self, logits: Tensor, run: Run, call: BeamCall, backend: str) -> None:
        super().__init__(logits, run, call.out, backend, call.shaping, call.state, call.noise)
        self.normalisers, self.sorts_draws = call.normalisers, call.sorts_draws


def _beam_step(
    logits: Tensor,
    state: BeamState,
    *,
    step: int = 0,
    do_sample: bool = False,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    normalized: bool = False,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stopping_criteria: StoppingCriteria | None = None,
    sort_draws: bool = True,
    seed: int | Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    out: BeamStepOutput | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> BeamStepOutput:
    arguments: dict[str, Any] = {
        "do_sample": do_sample,
        "bias": bias,
        "suppress": suppress,
        "token_bitmask": token_bitmask,
        "normalized": normalized,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "stopping_criteria": stopping_criteria,
        "sort_draws": sort_draws,
        "seed": seed,
        "noise": noise,
        "rng": rng,
        "generator": generator,
        "backend": backend,
        "out": out,
        **knobs,
    }
    if is_tracing():
        return traced.beam_step(logits, state, step=step, **arguments)
    check_is_beam_state(state)
    checks.count_up_to("step", step, state.step_capacity - 1)
    draws_seed = do_sample is True and seed is None and noise is None and rng == "philox"
    with seed_given_back(generator) if draws_seed else nullcontext():
        return prepare_beam_step(logits, state, **arguments)(logits, step=step)


@implemented_by(_beam_step)
def beam_step(
    logits: Tensor,
    state: BeamState,
    *,
    step: int = 0,
    do_sample: bool = False,
    repetition_penalty: FloatKnob = 1.0,
    presence_penalty: FloatKnob = 0.0,
    frequency_penalty: FloatKnob = 0.0,
    no_repeat_ngram_size: IntKnob = 0,
    temperature: FloatKnob = 1.0,
    top_n_sigma: FloatKnob = 0.0,
    top_h: FloatKnob | None = None,
    top_k: IntKnob = 0,
    top_p: FloatKnob = 1.0,
    min_p: FloatKnob = 0.0,
    typical_p: FloatKnob = 1.0,
    epsilon_cutoff: FloatKnob = 0.0,
    eta_cutoff: FloatKnob = 0.0,
    min_tokens_to_keep: IntKnob = 1,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    normalized: bool = False,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stopping_criteria: StoppingCriteria | None = None,
    sort_draws: bool = True,
    seed: int | Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    out: BeamStepOutput | None = None,
) -> BeamStepOutput:
    """Advances every beam of `state` by one token, in place, as Hugging Face's beam search does.

    Per prompt, with n beams and K = max(2, 1 + number of EOS ids) * n::

        s = process_logits(log_softmax(logits)) + running score of the beam            n * vocab_size continuations
        candidates: the K largest s; with do_sample the K largest s - ln E (a draw without replacement), by s
        ends: EOS token, no capacity for another token, or stopping_criteria
        finished: of those that end, the ones among the first n join, scored by s / generated length ** length_penalty
                  with their last token counted and the prompt not; the best n of old and new stay
        running: the best n that do not end
        open: the best running beam, normalised by its length, beats one of the finished hypotheses

    Ties go to the better parent, then to the lower token id. With `early_stopping` True no hypothesis joins n finished
    ones, and the search is over once every prompt has n. With "never" and length_penalty > 0, `open` assumes the
    longest possible continuation. A continuation with score -inf does not exist. If fewer than n remain, a beam dies
    and feeds `pad_token_id`.

    The first child of a beam stays in its row. Every other child moves into a row whose beam has no child: the one with
    the longest common history. The caller applies the same moves to the model's cache::

        reorder_cache(cache, out.source_rows, prompt_positions + out.shared, prompt_positions + step)

    Arguments:
        logits: (rows, vocab_size) float32, float16 or bfloat16 by row, last dimension contiguous; rows may be strided.
        state: a `BeamState`; penalties read its histories instead of `input_ids`.
        step: tokens generated before this call, in [0, state.max_new_tokens). A state with a step counter ignores it.
        repetition_penalty ... token_bitmask: the shaping knobs of `process_logits`. Those from `temperature` to
            `min_tokens_to_keep` act with `do_sample` only, which requires a temperature > 0.
        normalized: `logits` hold log-probabilities, so the op skips the log-softmax.
        length_penalty: finite; above 0 favours long hypotheses. The longest length to its power must fit float32.
        early_stopping: False, True or "never".
        stopping_criteria: called once with the candidates (B * K, prompt_length + step + 1) int64; True ends one. Must
            be None if the state has a step counter.
        sort_draws: False keeps drawn candidates in the order of the draw, as transformers did up to 5.23. The order
            decides which of those that end are among the first n.
        seed, noise, rng, generator: as in `sample`; row b * n + j has the noise of beam j of prompt b.
        backend: "auto", "cpu", "cuda", "triton" or "torch".
        out: a BeamStepOutput of contiguous tensors to write into, shaped like the result.

    Returns the rows' next tokens and moves. `status` covers open prompts only. It marks rows with NaN or +inf, which
    have no continuation, and rows without an allowed token if the prompt has no other continuation.

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing.
    """
    raise NotImplementedError


@outside_graphs("a prepared op holds addresses: call `beam_step` itself inside the graph")
def prepare_beam_step(
    logits: Tensor,
    state: BeamState,
    *,
    do_sample: bool = False,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    normalized: bool = False,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stopping_criteria: StoppingCriteria | None = None,
    sort_draws: bool = True,
    seed: int | Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    out: BeamStepOutput | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> PreparedBeamStep:
    """Checks the arguments of `beam_step` once, and draws a missing seed. `logits` is an example for later calls.

    knobs: those of `process_logits`.
    """
    for name, flag in (("do_sample", do_sample), ("normalized", normalized), ("sort_draws", sort_draws)):
        if not isinstance(flag, bool):
            raise TypeError(f"`{name}` must be a bool, got {type(flag).__name__}")
    check_is_beam_state(state)
    check_beam_state(state, checks.check_logits(logits))
    shaping = check_shaping(
        logits,
        do_sample=do_sample,
        input_ids=state.history,
        prompt_lengths=state.prompt_length,
        bias=bias,
        suppress=suppress,
        token_bitmask=token_bitmask,
        **knobs,
    )
    if do_sample:
        numbers.temperature_knob(knobs.get("temperature", 1.0), numbers.FINITE_POSITIVE, shaping.like)
    check_search(length_penalty, early_stopping, stopping_criteria, state)
    if out is not None:
        check_beam_out(out, shaping.like)
    name, entry = _dispatch.resolve(logits.device, backend)
    source = check_noise(
        shaping.like, draws=do_sample, seed=seed, step=state.steps, noise=noise, rng=rng, generator=generator
    )
    from pygen.ops._beam_normalisers import normalisers_of

    call = BeamCall(
        shaping=replace(shaping, history_steps=state.steps),
        state=state,
        noise=source,
        normalized=normalized,
        stops_when_full=early_stopping is True,
        normalisers=normalisers_of(state, float(length_penalty), early_stopping),
        stopping_criteria=stopping_criteria,
        sorts_draws=do_sample and sort_draws,
        out=empty_beam_output(shaping.like) if out is None else out,
    )
    return PreparedBeamStep(logits, entry(call), call, name)


_SELECT, _ADVANCE = 1, 2


def _cpu(call: BeamCall) -> Run:
    from pygen import _C

    work = BeamWorkspace.create(call.state)
    run_plan = _C.BeamPlan(**_arguments(call, work, torch.get_num_threads())).run
    generator, saved_state = call.noise.generator, call.saved_state_ptr

    def run(logits: Tensor, step: int, length: int) -> None:
        _run_halves(call, work, step, run_plan, (logits.data_ptr(), logits.stride()[0], step, length, saved_state))

    def run_advancing(logits: Tensor, step: int, length: int) -> None:
        with lock_of(generator):
            generator_state = generator.get_state()
            arguments = (logits.data_ptr(), logits.stride()[0], step, length, generator_state.data_ptr())
            _run_halves(call, work, step, run_plan, arguments)
            generator.set_state(generator_state)

    return run_advancing if call.noise.advances_generator and not saved_state else run


def _cuda(call: BeamCall) -> Run:
    work = BeamWorkspace.create(call.state)
    plan = cuda.kernels().BeamPlan(**_arguments(call, work, threads=1))
    launch = cuda.Launches(plan, call.shaping.like.device)
    saved_state = call.saved_state_ptr
    increment = plan.generator_increment if call.noise.advances_generator and not saved_state else 0

    def run(logits: Tensor, step: int, length: int) -> None:
        with cuda.taken_noise(call.noise.generator, increment) as (seed, offset):
            arguments = (logits.data_ptr(), logits.stride()[0], step, length, seed, offset, saved_state)
            _run_halves(call, work, step, launch, arguments)

    return run


def _triton(call: BeamCall) -> Run:
    from pygen.triton_kernels import beam_step as kernels

    work = BeamWorkspace.create(call.state)
    launch = kernels.prepare(call, work)

    def run(logits: Tensor, step: int, length: int) -> None:
        _run_halves(call, work, step, launch, (logits, step, length))

    return run


def _run_halves(
    call: BeamCall, work: BeamWorkspace, step: int, launch: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    """Runs both halves of a step in one launch, or in two with the call of `stopping_criteria` in between."""
    if call.stopping_criteria is None:
        launch(*arguments, _SELECT | _ADVANCE)
    else:
        launch(*arguments, _SELECT)
        work.ends.copy_(call.ends(work.candidate_ids, work.candidate_parents, step))
        launch(*arguments, _ADVANCE)


def _arguments(call: BeamCall, work: BeamWorkspace, threads: int) -> dict[str, float]:
    return {
        **call.shaping.kernel_arguments(threads),
        **call.noise.kernel_arguments(),
        **beam_state_arguments(call.state),
        **work.kernel_arguments(),
        "normalized": call.normalized,
        "do_sample": call.noise.draws,
        "normalisers_ptr": call.normalisers.data_ptr(),
        "stops_when_full": call.stops_when_full,
        "sorts_draws": call.sorts_draws,
        "token_ids_ptr": call.out.token_ids.data_ptr(),
        "source_rows_ptr": call.out.source_rows.data_ptr(),
        "shared_out_ptr": call.out.shared.data_ptr(),
        "status_ptr": call.out.status.data_ptr(),
    }


def _torch(call: BeamCall) -> Run:
    from pygen.reference import beam_step as reference

    @detached
    def run(logits: Tensor, step: int, length: int) -> None:
        shaping = call.shaping.reference_arguments(length)
        del shaping["input_ids"], shaping["prompt_lengths"]
        with generator_of(call.state, call.noise.generator) as generator:
            result = reference.beam_step(
                logits,
                call.state,
                **{**shaping, **call.noise.reference_arguments(step), "step": step, "generator": generator},
                normalized=call.normalized,
                early_stopping=call.stops_when_full,
                normalisers=call.normalisers,
                stopping_criteria=None if call.stopping_criteria is None else call.answer,
                sort_draws=call.sorts_draws,
            )
        for target, source in zip(call.out, result, strict=True):
            target.copy_(source)

    return run


_dispatch: Dispatcher[Callable[[BeamCall], Run]] = Dispatcher(
    "beam_step", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
