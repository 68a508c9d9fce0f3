"""Log-probabilities of given tokens, and of the best ones, without a table over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _traced as traced
from pygen.ops._outputs import TokenLogprobs, TopLogprobs, empty_logprobs
from pygen.ops._plans import Plans
from pygen.ops._shaping import DTYPE_CODES
from pygen.ops._traced import is_tracing


def token_logprobs(
    logits: Tensor, token_ids: Tensor, *, top: int = 0, backend: str = "auto", out: TokenLogprobs | None = None
) -> TokenLogprobs:
    """Returns ln softmax(logits) of given tokens, for perplexities, importance weights and scores of choices.

    Per row x of the logits::

        logprob of id = x[id] - ln(sum over i of exp(x[i]))      NaN for an id outside the vocabulary
        top_logprobs  = the `top` largest with their ids, ties to the lowest id

    Ids outside the vocabulary give NaN and never an error, so that a batch needs no copy of its logits: shifted labels
    may have -100 at the end. In a row with NaN, +inf or only -inf all values are NaN, the ids of its best tokens are
    -1, and its status says why. A removed token (-inf) of another row has -inf. The op reads the logits once and
    allocates nothing of their size. The result has no gradient.

    Arguments:
        logits: (rows, vocab_size) float32, float16 or bfloat16, last dimension contiguous; rows may be strided.
        token_ids: (rows,) int64 or int32, or (rows, n) with a contiguous last dimension.
        top: how many of the best tokens to return. If fewer are finite, the rest is id -1 with -inf.
        backend: "auto", "cpu", "cuda", "triton" or "torch".
        out: a TokenLogprobs of contiguous tensors to write into, shaped like the result.

    Returns TokenLogprobs(logprobs, top_logprobs, status); top_logprobs is None with top=0.

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing.
    """
    if is_tracing():
        return traced.token_logprobs(logits, token_ids, top=top, backend=backend, out=out)
    key = None if out is not None else _plans.key(backend, (top,), (logits, token_ids))
    entry = _plans.find(key)
    if entry is None:
        like = checks.check_logits(logits)
        _check_token_ids(token_ids, like)
        checks.count("top", top)
        if out is not None:
            _check_out(out, tuple(token_ids.shape), top, like)
        name, entry = _dispatch.resolve(logits.device, backend)
        if key is not None and name == "cpu":
            _plans.keep(key, entry)
    if out is None:
        out = empty_logprobs(token_ids.shape, top, logits)
    # len(), or a conversion to the same dtype, would call torch.
    if logits.shape[0] > 0:
        entry(logits, token_ids if token_ids.dtype is torch.int64 else token_ids.long(), out)
    return out


def _check_token_ids(token_ids: Tensor, like: checks.Like) -> None:
    checks.check_ids("token_ids", token_ids)
    if token_ids.dim() not in (1, 2) or token_ids.shape[0] != like.rows:
        shape = tuple(token_ids.shape)
        raise ValueError(f"`token_ids` must have shape (rows,) or (rows, n) with {like.rows} rows, got {shape}")
    checks.check_device("token_ids", token_ids, like.device)
    if token_ids.dim() == 2:
        checks.check_last_stride("token_ids", token_ids)


def _check_out(out: TokenLogprobs, shape: tuple[int, ...], top: int, like: checks.Like) -> None:
    if not isinstance(out, TokenLogprobs):
        raise TypeError(f"`out` must be a TokenLogprobs, got {type(out).__name__}")
    words = "(rows,)" if len(shape) == 1 else "(rows, n)"
    checks.check_output("out.logprobs", out.logprobs, torch.float32, words, shape, like)
    checks.check_output("out.status", out.status, torch.int32, "(rows,)", (like.rows,), like)
    if top == 0:
        if out.top_logprobs is not None:
            raise ValueError("`out.top_logprobs` must be None with top=0, got tensors")
        return
    if not isinstance(out.top_logprobs, TopLogprobs):
        raise TypeError(f"`out.top_logprobs` must be a TopLogprobs, got {type(out.top_logprobs).__name__}")
    ids, values = out.top_logprobs
    top_shape = (like.rows, top)
    checks.check_output("out.top_logprobs.token_ids", ids, torch.int64, "(rows, top)", top_shape, like)
    checks.check_output("out.top_logprobs.logprobs", values, torch.float32, "(rows, top)", top_shape, like)


def _cpu(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    from pygen import _C

    _C.token_logprobs(torch.get_num_threads(), **_arguments(logits, token_ids, out))


def _cuda(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    with cuda.on(logits.device) as (ordinal, stream):
        cuda.kernels().launch_token_logprobs(ordinal, stream, **_arguments(logits, token_ids, out))


def _triton(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    from pygen.triton_kernels.token_logprobs import token_logprobs as kernel

    kernel(logits, token_ids, out)


def _arguments(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> dict[str, int]:
    top = out.top_logprobs
    return {
        "rows": logits.shape[0],
        "vocab_size": logits.shape[1],
        "dtype": DTYPE_CODES[logits.dtype],
        "logits_ptr": logits.data_ptr(),
        "logits_stride": logits.stride(0),
        "token_ids_ptr": token_ids.data_ptr(),
        "token_ids_stride": token_ids.stride(0),
        "num_tokens": 1 if token_ids.dim() == 1 else token_ids.shape[1],
        "num_top": 0 if top is None else top.token_ids.shape[1],
        "logprobs_ptr": out.logprobs.data_ptr(),
        "top_ids_ptr": 0 if top is None else top.token_ids.data_ptr(),
        "top_logprobs_ptr": 0 if top is None else top.logprobs.data_ptr(),
        "status_ptr": out.status.data_ptr(),
    }


def _torch(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    from pygen.reference.token_logprobs import token_logprobs as reference

    with torch.no_grad():
        top = 0 if out.top_logprobs is None else out.top_logprobs.token_ids.shape[1]
        result = reference(logits, token_ids, top=top)
        out.logprobs.copy_(result.logprobs)
        out.status.copy_(result.status)
        if out.top_logprobs is not None and result.top_logprobs is not None:
            for target, source in zip(out.top_logprobs, result.top_logprobs, strict=True):
                target.copy_(source)


_dispatch: Dispatcher[Callable[[Tensor, Tensor, TokenLogprobs], None]] = Dispatcher(
    "token_logprobs", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
_plans: Plans[Callable[[Tensor, Tensor, TokenLogprobs], None]] = Plans(_dispatch)
