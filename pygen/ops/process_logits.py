"""The scores for a draw: penalties, bans, temperature and every filter in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.knobs import BoolKnob, FloatKnob, IntKnob, ShapingKnobs
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _traced as traced
from pygen.ops._plans import Plans, scalars_of_ids
from pygen.ops._prepared import Prepared, Run, detached
from pygen.ops._reusable import ReusableScores
from pygen.ops._shaping import Shaping, TokenIds, check_shaping
from pygen.ops._signature import implemented_by
from pygen.ops._traced import is_tracing, outside_graphs

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from pygen.ops._beam_state import BeamState
    from pygen.ops._state import DecodeState


class PreparedProcessLogits(Prepared[Tensor]):
    """`process_logits` with all arguments fixed but the logits; see `Prepared`."""

    __slots__ = ()


def _process_logits(
    logits: Tensor,
    *,
    do_sample: BoolKnob = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> Tensor:
    tracing, key = is_tracing(), None
    if out is None and not tracing:
        key = _plans.key(
            backend,
            (
                do_sample,
                prompt_lengths,
                *knobs,
                *knobs.values(),
                *scalars_of_ids(suppress),
            ),
            (logits, input_ids, bias, suppress if isinstance(suppress, Tensor) else None, token_bitmask),
        )
        plan = _plans.find(key)
        if plan is not None:
            return plan(logits, (input_ids, bias, suppress, token_bitmask))
    arguments: dict[str, Any] = {
        "do_sample": do_sample,
        "input_ids": input_ids,
        "prompt_lengths": prompt_lengths,
        "bias": bias,
        "suppress": suppress,
        "token_bitmask": token_bitmask,
        "backend": backend,
        "out": out,
        **knobs,
    }
    if tracing:
        return traced.process_logits(logits, **arguments)
    prepared = prepare_process_logits(logits, **arguments)
    result = prepared(logits)
    if key is not None and prepared.backend == "cpu" and len(logits) > 0:
        shaping = prepared.shaping
        _plans.keep(key, ReusableScores(shaping, None if isinstance(suppress, Tensor) else shaping.suppress))
    return result


@implemented_by(_process_logits)
def process_logits(
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
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Returns the scores after every processor and filter: (rows, vocab_size) float32, removed entries -inf.

    It leaves `logits` unchanged.

    Per row, in float32 and in this order, which is Hugging Face's::

        x = logits + bias
        repetition_penalty r   every distinct id of input_ids: x * r where x < 0, else x / r
        presence p, frequency f   ids at columns >= prompt_lengths, found c > 0 times: x - c * f - p
        no_repeat_ngram_size n   ban every y such that (last n - 1 ids, y) is already in input_ids
        suppress, token_bitmask   suppressed ids, and ids whose bit is 0, become -inf
        greedy row: the result is x
        s = x / temperature; then each filter acts on the survivors of the one before, with p = softmax(s) renormalised:
        top_n_sigma     s >= max s - n * the standard deviation of the s that are not -inf
        top_h           of the 100 largest, the prefix with cumulative -sum p ln p <= top_h * entropy; the first always
        top_k           s >= k-th largest, k = max(top_k, min_tokens_to_keep): ties at the boundary stay
        top_p           walking down from the largest, of equal s from the highest id, while the mass before is < top_p
        min_p           p >= min_p * max p
        typical_p       d = abs(-ln p - entropy) <= the d at which the mass, d ascending, reaches typical_p
        epsilon_cutoff  p >= epsilon_cutoff
        eta_cutoff      p >= min(eta_cutoff, sqrt(eta_cutoff) * exp(-entropy))

    Every filter but top_h keeps at least the first `min_tokens_to_keep` of its order. If scores tie, lower ids come
    first, in top_p higher ids, as a stable sort in Hugging Face's order gives. Every filter is off at its default, and
    the neutral value of a knob costs nothing.

    Arguments:
        logits: (rows, vocab_size) float32, float16 or bfloat16, last dimension contiguous; rows may be strided.
        do_sample: bool or (rows,) bool; False makes a row greedy, as temperature 0 does.
        temperature, top_n_sigma: finite and >= 0. top_p, min_p: in [0, 1]. typical_p: in (0, 1]. epsilon_cutoff,
            eta_cutoff: in [0, 1). top_h: None or in (0, 1]; in a tensor 0 is off. repetition_penalty: finite and > 0.
            presence_penalty, frequency_penalty: finite. All a number, or one per row in a list or a (rows,) floating
            point tensor; taken as float32. A tensor without dimensions is a number.
        top_k, no_repeat_ngram_size: >= 0, 0 is off. min_tokens_to_keep: >= 1. An int, or one per row in a list or a
            (rows,) int64 or int32 tensor.
        input_ids: (rows, length) int64 or int32, last dimension contiguous. The op ignores ids outside the vocabulary,
            so write -1 to hide padding. Required if a penalty or the n-gram ban acts.
        prompt_lengths: columns of `input_ids` that are prompt, an int or (rows,) int64; None is 0.
        bias: (vocab_size,) or (rows, vocab_size) float32. A single row, (1, vocab_size), applies to all rows, as in the
            tables below.
        suppress: token ids for all rows, a sequence of ints or (n,) int64 or int32, or (rows, n). The op ignores ids
            outside the vocabulary.
        token_bitmask: (ceil(vocab_size / 32),) or (rows, ceil(vocab_size / 32)) int32; bit i % 32 of word i // 32 set:
            id i is allowed (xgrammar's format).
        backend: "auto", "cpu", "cuda", "triton" or "torch".
        out: (rows, vocab_size) float32 to write into, last dimension contiguous, sharing no memory with `logits`.

    If a tiny temperature would push the best score out of float32's range, the op uses the temperature at which that
    score has magnitude 2^100. Only ties of the best token can be drawn at either temperature. A row with NaN or +inf,
    or with only -inf, is returned as x.

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing.
    """
    raise NotImplementedError


@outside_graphs("a prepared op holds addresses: call `process_logits` itself inside the graph")
def prepare_process_logits(
    logits: Tensor,
    *,
    do_sample: BoolKnob = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: TokenIds | None = None,
    token_bitmask: Tensor | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
    state: DecodeState | BeamState | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> PreparedProcessLogits:
    """Checks the arguments of `process_logits` once. `logits` is an example for later calls.

    knobs: those of `process_logits`.
    state: its sequences replace `input_ids` and its prompt length `prompt_lengths`. The op only reads it.
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
    shape = (shaping.like.rows, shaping.like.vocab_size)
    if out is not None:
        checks.check_tensor("out", out)
        checks.check_dtype("out", out, torch.float32)
        checks.check_shape("out", out, "(rows, vocab_size)", shape)
        checks.check_device("out", out, shaping.like.device)
        checks.check_last_stride("out", out)
        checks.check_rows_apart("out", out)
        checks.check_no_overlap("out", out, "logits", logits)
    name, entry = _dispatch.resolve(logits.device, backend)
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=logits.device)
    return PreparedProcessLogits(logits, entry(shaping, out), out, name, shaping, state)


def _cpu(shaping: Shaping, out: Tensor) -> Run:
    from pygen import _C

    run_plan = _C.ProcessPlan(**shaping.kernel_arguments(torch.get_num_threads())).run
    out_at, out_stride = out.data_ptr(), out.stride(0)

    def run(logits: Tensor, step: int, length: int) -> None:
        run_plan(logits.data_ptr(), logits.stride()[0], step, length, out_at, out_stride)

    return run


def _cuda(shaping: Shaping, out: Tensor) -> Run:
    launch = cuda.Launches(cuda.kernels().ProcessPlan(**shaping.kernel_arguments(threads=1)), shaping.like.device)

    def run(logits: Tensor, step: int, length: int) -> None:
        launch(logits.data_ptr(), logits.stride()[0], length, out.data_ptr(), out.stride(0))

    return run


def _triton(shaping: Shaping, out: Tensor) -> Run:
    from pygen.triton_kernels import process_logits as kernels

    run: Run = kernels.prepare(shaping, out)
    return run


def _torch(shaping: Shaping, out: Tensor) -> Run:
    from pygen.reference.process_logits import process_logits as reference

    @detached
    def run(logits: Tensor, step: int, length: int) -> None:
        out.copy_(reference(logits, **shaping.reference_arguments(length)))

    return run


_dispatch: Dispatcher[Callable[[Shaping, Tensor], Run]] = Dispatcher(
    "process_logits", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
_plans: Plans[ReusableScores] = Plans(_dispatch)
