"""Draws the next token of every row in one call: scores, exponential race, log-probabilities and bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.knobs import BoolKnob, FloatKnob, IntKnob, ShapingKnobs
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _numbers as numbers
from pygen.ops import _traced as traced
from pygen.ops._kept_tokens import KeptRows, check_kept
from pygen.ops._noise import Noise, check_noise
from pygen.ops._outputs import SampleOutput, check_out, empty_output, output_arguments, tensors_of
from pygen.ops._plans import Plans, scalars_of_ids
from pygen.ops._prepared import Prepared, Run, detached
from pygen.ops._reusable import ReusableSample
from pygen.ops._shaping import Shaping, TokenIds, check_shaping
from pygen.ops._signature import implemented_by
from pygen.ops._state_checks import generator_of, state_arguments
from pygen.ops._traced import is_tracing
from pygen.rng import lock_of, seed_given_back

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pygen.ops._state import DecodeState


class PreparedSample(Prepared[SampleOutput]):
    """`sample` with all arguments fixed but the logits and the step; see `Prepared`."""

    __slots__ = ()


def _sample(
    logits: Tensor,
    *,
    do_sample: BoolKnob = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    seed: int | Sequence[int] | Tensor | None = None,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    logprobs: int = 0,
    output_kept: bool = False,
    kept_limit: int = 1024,
    backend: str = "auto",
    out: SampleOutput | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> SampleOutput:
    tracing, key = is_tracing(), None
    steps = numbers.steps_of("step", step, logits) if isinstance(logits, Tensor) and not tracing else 0
    if (
        not tracing
        and noise is None
        and out is None
        and (seed is None or type(seed) is int)
        and (generator is None or type(generator) is torch.Generator)
    ):
        key = _plans.key(
            backend,
            (
                do_sample,
                prompt_lengths,
                *knobs,
                *knobs.values(),
                rng,
                logprobs,
                output_kept,
                kept_limit,
                seed is None,
                None if generator is None else generator.device,
                *scalars_of_ids(suppress),
            ),
            (
                logits,
                input_ids,
                bias,
                suppress if isinstance(suppress, Tensor) else None,
                token_bitmask,
                steps if isinstance(steps, Tensor) else None,
            ),
        )
        plan = _plans.find(key)
        if plan is not None and (seed is None or 0 <= seed < numbers.SEED_LIMIT):
            return _compressed(plan(logits, steps, (input_ids, bias, suppress, token_bitmask), seed, generator))
    arguments: dict[str, Any] = {
        "do_sample": do_sample,
        "input_ids": input_ids,
        "prompt_lengths": prompt_lengths,
        "bias": bias,
        "suppress": suppress,
        "token_bitmask": token_bitmask,
        "seed": seed,
        "noise": noise,
        "rng": rng,
        "generator": generator,
        "logprobs": logprobs,
        "output_kept": output_kept,
        "kept_limit": kept_limit,
        "backend": backend,
        "out": out,
        **knobs,
    }
    if tracing:
        return traced.sample(logits, step=step, **arguments)
    draws_seed = seed is None and noise is None and rng == "philox" and do_sample is not False
    with seed_given_back(generator) if draws_seed else nullcontext():
        prepared = prepare_sample(logits, step=steps if isinstance(steps, Tensor) else None, **arguments)
        result = prepared(logits, step=0 if isinstance(steps, Tensor) else steps)
    if key is not None and prepared.backend == "cpu" and len(logits) > 0:
        assert prepared.noise is not None
        call = SampleCall(prepared.shaping, prepared.noise, logprobs, prepared.out, None)
        own_suppress = None if isinstance(suppress, Tensor) else prepared.shaping.suppress
        _plans.keep(key, ReusableSample(_arguments(call, threads=1), prepared.noise, logprobs, own_suppress))
    return result if out is not None else _compressed(result)


def _compressed(out: SampleOutput) -> SampleOutput:
    return out._replace(kept=out.kept.compressed()) if isinstance(out.kept, KeptRows) else out


@implemented_by(_sample)
def sample(
    logits: Tensor,
    *,
    do_sample: BoolKnob = True,
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
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    seed: int | Sequence[int] | Tensor | None = None,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    logprobs: int = 0,
    output_kept: bool = False,
    kept_limit: int = 1024,
    backend: str = "auto",
    out: SampleOutput | None = None,
) -> SampleOutput:
    """Draws one token per row from the survivors of `process_logits`: token i with probability softmax(s)[i].

    With s the scores of `process_logits` and E > 0 exponential noise, per row::

        token = argmax over survivors of s - ln E      ties to the lowest id; a survivor beats every removed token
        greedy row: token = argmax of x, without a draw

    The noise of element (row, id) is

    - rng="philox": a function of (row seed, step, id) alone. word = philox4x32_10(key = row seed, counter = (id >> 2,
      step, 0, 0))[id & 3]; u = min(float32((word + 1/2) / 2**32), 1 - 2**-24); E = -log1p(-u) (Salmon et al. 2011).
    - rng="torch": the noise that `torch.multinomial(torch.softmax(s, -1), 1)` draws from `generator`, so both return
      the same token. The generator advances by rows * vocab_size elements, also for greedy rows.
    - noise=: given.

    At any small temperature, the draw is among the largest scores, uniform over ties. A row that is not OK (see
    `RowStatus`) is not drawn: its token is the lowest id of the largest x that is not NaN, and its log-probabilities
    are NaN. It does not affect other rows. Every row, invalid ones included, returns an id in [0, vocab_size).

    Arguments:
        logits, do_sample to token_bitmask, backend: see `process_logits`.
        seed: an int in [0, 2**64), from which row r gets `pygen.rng.row_seed(seed, r)`; or the row seeds themselves,
            one such int per row, or (rows,) int64 bit patterns. None draws it from `generator`, or torch's default.
        step: tokens generated so far, an int in [0, 2**32), or one per row, (rows,) int64.
        noise: (rows, vocab_size) float32, finite and > 0, last dimension contiguous. Excludes seed, generator and
            rng="torch".
        rng: "philox" or "torch"; "torch" excludes seed, and needs CPU or CUDA logits.
        generator: a torch.Generator, with rng="torch" on the device of the logits; None is torch's default one there.
            It does not advance if `do_sample` is False.
        logprobs: n > 0 also returns ln softmax(s) of the token, and the n best tokens with theirs. In a greedy row s is
            x.
        output_kept: True also returns the tokens that survive all filters, as `KeptTokens`. Tokens that bans, bias or
            the bitmask set to -inf do not survive. At least one row must have a filter or a bitmask, or be greedy.
        kept_limit: a row that keeps more tokens stores none of them, and `KeptTokens.complete` marks it.
        out: a SampleOutput of contiguous tensors to write into, shaped like the result; its `kept` is a `KeptRows`.

    Returns SampleOutput(token_ids, logprobs, top_logprobs, status, kept).

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing, not even the generator.
    """
    raise NotImplementedError


@traced.preparation
def prepare_sample(
    logits: Tensor,
    *,
    do_sample: BoolKnob = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    seed: int | Sequence[int] | Tensor | None = None,
    step: Tensor | None = None,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    logprobs: int = 0,
    output_kept: bool = False,
    kept_limit: int = 1024,
    backend: str = "auto",
    out: SampleOutput | None = None,
    state: DecodeState | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> PreparedSample:
    """Checks the arguments of `sample` once, and draws a missing seed. `logits` is an example for later calls.

    knobs: those of `process_logits`.
    step: (rows,) int64 that the noise of every call reads; None uses the step of the call.
    output_kept: the result's `kept` is a `KeptRows`, whose `compressed()` is what `sample` returns.
    state: its sequences replace `input_ids` and its prompt length `prompt_lengths`. Every call extends them at column
        prompt_length + step: a finished row gets `pad_token_id`; the others get their token, count it in
        `num_generated`, and finish if it is one of `eos_token_ids`. The call then updates `unfinished`. The result
        holds the tokens as appended; a finished row keeps no tokens, and its status and log-probabilities are
        meaningless. If the state has `steps`, row r is at steps[r] instead of the call's step, and every call adds 1 to
        them. If it has a `generator_state`, torch's noise comes from that.
    """
    shaping = check_shaping(
        logits,
        do_sample=do_sample,
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        bias=bias,
        suppress=suppress,
        token_bitmask=token_bitmask,
        state=state,
        **knobs,
    )
    if state is not None and step is not None:
        raise ValueError("`step` must be None where `state` has a column for every step, got a tensor")
    num_logprobs = checks.count("logprobs", logprobs)
    kept_width = check_kept(output_kept, kept_limit, shaping)
    if out is not None:
        check_out(out, num_logprobs, shaping.like, kept_width)
    name, entry = _dispatch.resolve(logits.device, backend)
    if out is None:
        out = empty_output(shaping.like.rows, num_logprobs, logits.device, kept_width)
    source = check_noise(
        shaping.like,
        draws=do_sample is not False,
        seed=seed,
        step=step if state is None else state.steps,
        noise=noise,
        rng=rng,
        generator=generator,
    )
    run = entry(SampleCall(shaping, source, num_logprobs, out, state))
    return PreparedSample(logits, run, out, name, shaping, state, source)


@dataclass(frozen=True)
class SampleCall:
    """The checked arguments, as backends take them. The Prepared keeps `out` and the tensors behind pointers alive."""

    shaping: Shaping
    noise: Noise
    num_logprobs: int
    out: SampleOutput
    state: DecodeState | None


def _cpu(call: SampleCall) -> Run:
    from pygen import _C

    run_plan = _C.SamplePlan(**_arguments(call, torch.get_num_threads())).run
    generator = call.noise.generator
    saved_state = _saved_state_ptr(call)

    def run(logits: Tensor, step: int, length: int) -> None:
        run_plan(logits.data_ptr(), logits.stride()[0], step, length, saved_state)

    def run_advancing(logits: Tensor, step: int, length: int) -> None:
        with lock_of(generator):
            generator_state = generator.get_state()
            run_plan(logits.data_ptr(), logits.stride()[0], step, length, generator_state.data_ptr())
            generator.set_state(generator_state)

    return run_advancing if call.noise.advances_generator and not saved_state else run


def _cuda(call: SampleCall) -> Run:
    plan = cuda.kernels().SamplePlan(**_arguments(call, threads=1))
    launch = cuda.Launches(plan, call.shaping.like.device)
    saved_state = _saved_state_ptr(call)
    increment = plan.generator_increment if call.noise.advances_generator and not saved_state else 0

    def run(logits: Tensor, step: int, length: int) -> None:
        with cuda.taken_noise(call.noise.generator, increment) as (seed, offset):
            launch(logits.data_ptr(), logits.stride()[0], step, length, seed, offset, saved_state)

    return run


def _saved_state_ptr(call: SampleCall) -> int:
    saved_state = None if call.state is None else call.state.generator_state
    return 0 if saved_state is None else saved_state.data_ptr()


def _arguments(call: SampleCall, threads: int) -> dict[str, float]:
    return {
        **call.shaping.kernel_arguments(threads),
        **call.noise.kernel_arguments(),
        **call.noise.step_arguments(),
        **output_arguments(call.out, call.num_logprobs),
        **state_arguments(call.state),
    }


def _triton(call: SampleCall) -> Run:
    from pygen.triton_kernels import sample as kernels

    run: Run = kernels.prepare(call.shaping, call.noise, call.num_logprobs, call.out, call.state)
    return run


def _torch(call: SampleCall) -> Run:
    from pygen.ops import _bookkeeping as bookkeeping
    from pygen.reference import sample as reference

    kept = call.out.kept

    @detached
    def run(logits: Tensor, step: int, length: int) -> None:
        with generator_of(call.state, call.noise.generator) as generator:
            result = reference.sample(
                logits,
                **call.shaping.reference_arguments(length),
                **{**call.noise.reference_arguments(step), "generator": generator},
                logprobs=call.num_logprobs,
                output_kept=kept is not None,
                kept_limit=0 if kept is None else kept.token_ids.shape[1],
            )
        if call.state is not None:
            if isinstance(result.kept, KeptRows):
                result = result._replace(kept=result.kept.without(call.state.finished))
            bookkeeping.append_tokens(call.state, result.token_ids, step)
        for target, source in zip(tensors_of(call.out), tensors_of(result), strict=True):
            target.copy_(source)

    return run


_dispatch: Dispatcher[Callable[[SampleCall], Run]] = Dispatcher(
    "sample", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
_plans: Plans[ReusableSample] = Plans(_dispatch)
