"""Batched speculative sampling: which drafted tokens pass, and the token after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.knobs import BoolKnob, FloatKnob, IntKnob
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _numbers as numbers
from pygen.ops import _traced as traced
from pygen.ops._checks import Like
from pygen.ops._draft_call import DraftCall
from pygen.ops._noise import check_noise
from pygen.ops._outputs import DraftOutput, empty_draft_output
from pygen.ops._plans import Plans
from pygen.ops._shaping import DTYPE_CODES, greedy_is_zero
from pygen.ops._traced import is_tracing
from pygen.rng import seed_given_back


def verify_draft(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    draft_logits: Tensor | None = None,
    *,
    draft_lengths: IntKnob | None = None,
    do_sample: BoolKnob = True,
    temperature: FloatKnob = 1.0,
    seed: int | Sequence[int] | Tensor | None = None,
    step: int | Tensor = 0,
    uniforms: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> DraftOutput:
    """Accepts drafts of every row, and draws one more token, so that all of them are draws from the target.

    Per row, for the positions i = 0, 1, ... of its drafts x::

        p = softmax(target_logits[i] / temperature)
        q = softmax(draft_logits[i] / temperature), or 1 at x if drafts are certain (draft_logits=None)
        x passes if u < p(x) / q(x), compared as logarithms to avoid underflow; p(x) = 0 never passes
        at the first x that fails, the token is drawn from max(p - q, 0), normalised, or from p if that is 0 everywhere
        after the last draft, the token is drawn from p
        greedy row: x passes if it is the argmax of target_logits[i], lowest id first; the token is the next argmax

    It serves loops of your own that have the processed scores of a whole round. `generate()` does not use it: there
    processors see the text before each position, and draws take torch's generator as transformers does.

    For any q the result is distributed as p (Leviathan et al. 2023; Chen et al. 2023), provided that the drafts were
    drawn from q with other noise. An id outside the vocabulary ends the row's drafts.

    The token at position i is the winner of the race of `sample` at step + i: the argmax of ln weight - ln E, ties to
    the lowest id. u is computed as E is, from the word of id x in stream 2. Both depend on row seed, step + i and id
    alone.

    If the target's or draft's scores at a position reached have NaN, +inf or only -inf, the row ends there with a
    status. Its token is the lowest id of the largest target score that is not NaN. A greedy row reads no draft logits.

    Arguments:
        target_logits: (rows, n + 1, vocab_size) float32, float16 or bfloat16 processed scores, -inf for a removed
            token. The last dimension is contiguous, the others may be strided.
        draft_token_ids: (rows, n) int64 or int32, last dimension contiguous; n may be 0.
        draft_logits: (rows, n, vocab_size) of any of these dtypes, the scores that the drafts were drawn from.
        draft_lengths: the number of drafts of a row, in [0, n]: an int, or one per row in a list or (rows,) int64; None
            is n. The values of a GPU tensor are not checked, but clamped to [0, n].
        do_sample, temperature: as in `process_logits`; temperature 0 makes a row greedy.
        seed, step, generator: as in `sample`; `step` is that of the first draft.
        uniforms, noise: u in [0, 1) of every draft, (rows, n), and E > 0 of the final draw, (rows, vocab_size), float32
            both; one needs the other. They exclude seed and generator.
        backend: "auto", "cpu", "cuda", "triton" or "torch".

    Returns DraftOutput(accepted_lengths, token_ids, status).

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing, not even the generator.
    """
    if is_tracing():
        return traced.verify_draft(
            target_logits,
            draft_token_ids,
            draft_logits=draft_logits,
            draft_lengths=draft_lengths,
            do_sample=do_sample,
            temperature=temperature,
            seed=seed,
            step=step,
            uniforms=uniforms,
            noise=noise,
            generator=generator,
            backend=backend,
        )
    key = None
    if uniforms is None and noise is None:
        scalars, tensors = (do_sample, temperature, draft_lengths), (target_logits, draft_token_ids, draft_logits)
        key = _plans.key(backend, scalars, tensors)
    checked = _plans.find(key)
    if checked is None:
        like = _check_target(target_logits)
        num_drafts = target_logits.shape[1] - 1
        _check_drafts(draft_token_ids, draft_logits, num_drafts, like)
        lengths = _check_lengths(draft_lengths, num_drafts, like)
        temperatures = greedy_is_zero(
            numbers.bool_knob("do_sample", do_sample, like),
            numbers.temperature_knob(temperature, numbers.FINITE_NON_NEGATIVE, like),
            like,
        )
        _check_uniforms(uniforms, noise, num_drafts, like)
        name, entry = _dispatch.resolve(like.device, backend)
        checked = _Checked(like, lengths, temperatures, entry)
        if key is not None and name == "cpu":
            _plans.keep(key, checked)
    like, lengths, temperatures, entry = checked
    step = numbers.steps_of("step", step, target_logits)
    out = empty_draft_output(like.rows, like.device)
    draws = do_sample is not False
    with seed_given_back(generator) if draws and seed is None and noise is None else nullcontext():
        source = check_noise(like, draws=draws, seed=seed, step=step, noise=noise, rng="philox", generator=generator)
        call = DraftCall(
            target=target_logits,
            draft_token_ids=draft_token_ids.long(),
            draft=draft_logits,
            lengths=lengths,
            temperature=temperatures,
            noise=source,
            step=0 if isinstance(step, Tensor) else step,
            uniforms=None if uniforms is None else uniforms.contiguous(),
        )
        if like.rows > 0:
            entry(call, out)
    return out


class _Checked(NamedTuple):
    """The results of a call's checks."""

    like: Like
    lengths: int | Tensor
    temperature: float | Tensor
    entry: Callable[[DraftCall, DraftOutput], None]


def _check_target(target_logits: Tensor) -> Like:
    _check_scores("target_logits", target_logits)
    shape = tuple(target_logits.shape)
    if len(shape) != 3 or shape[1] == 0 or shape[2] == 0:
        words = "(rows, n + 1, vocab_size) with at least one position and one column"
        raise ValueError(f"`target_logits` must have shape {words}, got {shape}")
    checks.check_last_stride("target_logits", target_logits)
    return Like(shape[0], shape[2], target_logits.device, "target_logits")


def _check_scores(name: str, value: Tensor) -> None:
    checks.check_tensor(name, value)
    if value.dtype not in checks.FLOAT_DTYPES:
        dtype = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"`{name}` must be float32, float16 or bfloat16, got {dtype}")


def _check_drafts(draft_token_ids: Tensor, draft_logits: Tensor | None, num_drafts: int, like: Like) -> None:
    checks.check_ids("draft_token_ids", draft_token_ids)
    checks.check_shape("draft_token_ids", draft_token_ids, "(rows, n)", (like.rows, num_drafts))
    checks.check_device("draft_token_ids", draft_token_ids, like.device, like.name)
    checks.check_last_stride("draft_token_ids", draft_token_ids)
    if draft_logits is None:
        return
    _check_scores("draft_logits", draft_logits)
    shape = (like.rows, num_drafts, like.vocab_size)
    checks.check_shape("draft_logits", draft_logits, "(rows, n, vocab_size)", shape)
    checks.check_device("draft_logits", draft_logits, like.device, like.name)
    checks.check_last_stride("draft_logits", draft_logits)


def _check_lengths(draft_lengths: IntKnob | None, num_drafts: int, like: Like) -> int | Tensor:
    given = numbers.number_or_rows("draft_lengths", draft_lengths, Integral, torch.int64, like)
    if not isinstance(given, Tensor):
        return checks.count_up_to("draft_lengths", num_drafts if given is None else given, num_drafts)
    draft_lengths = given
    checks.check_ids("draft_lengths", draft_lengths)
    checks.check_shape("draft_lengths", draft_lengths, "(rows,)", (like.rows,))
    checks.check_device("draft_lengths", draft_lengths, like.device, like.name)
    # Reading the values of a GPU tensor would make the host wait.
    if draft_lengths.device.type == "cpu":
        for row in ((draft_lengths < 0) | (draft_lengths > num_drafts)).nonzero()[:1].flatten().tolist():
            got = f"{int(draft_lengths[row])} in row {row}"
            raise ValueError(f"`draft_lengths` must be in [0, {num_drafts}], got {got}")
    return draft_lengths.long().contiguous()


def _check_uniforms(uniforms: Tensor | None, noise: Tensor | None, num_drafts: int, like: Like) -> None:
    if (uniforms is None) != (noise is None):
        given, missing = ("noise", "uniforms") if uniforms is None else ("uniforms", "noise")
        raise ValueError(f"`{missing}` must be given where `{given}` is, got None")
    if uniforms is None:
        return
    checks.check_tensor("uniforms", uniforms)
    checks.check_dtype("uniforms", uniforms, torch.float32)
    checks.check_shape("uniforms", uniforms, "(rows, n)", (like.rows, num_drafts))
    checks.check_device("uniforms", uniforms, like.device, like.name)
    if checks.is_captured(uniforms.device):
        return
    for row, i in (~((uniforms >= 0) & (uniforms < 1))).nonzero()[:1].tolist():
        raise ValueError(f"`uniforms` must be in [0, 1), got {uniforms[row, i].item()} in row {row} at draft {i}")


def _cpu(call: DraftCall, out: DraftOutput) -> None:
    from pygen import _C

    _C.verify_draft(torch.get_num_threads(), **_arguments(call, out))


def _cuda(call: DraftCall, out: DraftOutput) -> None:
    with cuda.on(call.target.device) as (ordinal, stream):
        cuda.kernels().launch_verify_draft(ordinal, stream, **_arguments(call, out))


def _triton(call: DraftCall, out: DraftOutput) -> None:
    from pygen.triton_kernels.verify_draft import verify_draft as kernel

    kernel(call, out)


def _arguments(call: DraftCall, out: DraftOutput) -> dict[str, float]:
    target, draft = call.target, call.draft
    return {
        "rows": target.shape[0],
        "vocab_size": target.shape[2],
        "num_drafts": target.shape[1] - 1,
        "target_dtype": DTYPE_CODES[target.dtype],
        "target_ptr": target.data_ptr(),
        "target_row_stride": target.stride(0),
        "target_position_stride": target.stride(1),
        "draft_dtype": 0 if draft is None else DTYPE_CODES[draft.dtype],
        "draft_ptr": 0 if draft is None else draft.data_ptr(),
        "draft_row_stride": 0 if draft is None else draft.stride(0),
        "draft_position_stride": 0 if draft is None else draft.stride(1),
        "draft_ids_ptr": call.draft_token_ids.data_ptr(),
        "draft_ids_stride": call.draft_token_ids.stride(0),
        **_knob("lengths", call.lengths),
        **_knob("temperature", call.temperature),
        "step": call.step,
        **call.noise.kernel_arguments(),
        **call.noise.step_arguments(),
        "uniforms_ptr": 0 if call.uniforms is None else call.uniforms.data_ptr(),
        "accepted_ptr": out.accepted_lengths.data_ptr(),
        "token_ids_ptr": out.token_ids.data_ptr(),
        "status_ptr": out.status.data_ptr(),
    }


def _knob(name: str, value: float | Tensor) -> dict[str, float]:
    if isinstance(value, Tensor):
        return {name: 0, f"{name}_ptr": value.data_ptr()}
    return {name: value, f"{name}_ptr": 0}


def _torch(call: DraftCall, out: DraftOutput) -> None:
    from pygen.reference.verify_draft import verify_draft as reference

    with torch.no_grad():
        result = reference(
            call.target,
            call.draft_token_ids,
            call.draft,
            draft_lengths=call.lengths,
            temperature=call.temperature,
            uniforms=call.uniforms,
            **{name: value for name, value in call.noise.reference_arguments(call.step).items() if name != "rng"},
        )
        for target, source in zip(out, result, strict=True):
            target.copy_(source)


_dispatch: Dispatcher[Callable[[DraftCall, DraftOutput], None]] = Dispatcher(
    "verify_draft", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
_plans: Plans[_Checked] = Plans(_dispatch)
