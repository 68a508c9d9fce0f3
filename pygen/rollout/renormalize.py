"""Log-probabilities of sampled tokens within the sets that they were drawn from, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.ops import KeptTokens
from pygen.outputs import KeptSets


def renormalized_logprobs(
    logits: Tensor, tokens: Tensor, kept: KeptSets | KeptTokens, *, temperature: float | Tensor = 1.0
) -> Tensor:
    """Returns ln of the probability of each token among those that survived the filters when it was drawn.

    With z the logits over the temperature, per token::

        logprob = z[token] - ln(sum over the kept ids i of exp(z[i]))

    The result has gradients. For the model that sampled, it equals `output.logprobs` of `generate` up to rounding in
    float32, if temperature and filters alone shaped the logits. The caller must apply everything else to the logits
    first, above all penalties, `sequence_bias` and processors.

    - The token of a greedy row, which is all that the row kept, gets 0.
    - A position that kept nothing gets 0 and no gradient: those after the end of a row, and those without a valid
      choice (`on_invalid`).
    - A position with more than `kept_limit` survivors, where `kept.complete` is False, gets the log-probability over
      the whole vocabulary. It is at most the one that was drawn with; a mask of `complete` leaves such tokens out.

    Arguments:
        logits: (rows, steps, vocab_size) or (n, vocab_size), of the positions that chose the tokens: with prompts of
            P tokens, `model(sequences).logits[:, P - 1 : -1]`. The result is computed in float32, or in float64.
        tokens: (rows, steps) or (n,), integers: `sequences[:, P:]`.
        kept: `output.kept` of `generate`, or `kept` of `ops.sample`, with as many sets as tokens.
        temperature: one for all tokens, or a tensor that broadcasts to `tokens`, such as (rows, 1). 0 is greedy.

    Only the kept logits are copied; the gradient of `logits` has their shape.

    Raises TypeError for types and dtypes; ValueError for values and shapes, and for a token outside its set.
    """
    _check(logits, tokens, kept)
    token_ids = kept.token_ids.to(logits.device, torch.int64)
    counts = kept.offsets.to(logits.device).diff()
    complete = kept.complete.flatten().to(logits.device)
    chosen = tokens.flatten()
    _check_ids("kept.token_ids", token_ids, logits.shape[-1])
    _check_ids("tokens", chosen[~complete], logits.shape[-1])
    divisor = _divisor(temperature, tokens, logits)
    # The position of every kept id.
    position = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), counts)
    is_token = token_ids == chosen[position]
    _check_members(is_token, position, counts, tokens)

    # `logits` may be a view, and to flatten one copies it.
    at = (*_indices(position, tokens), token_ids)
    scores = logits[at].to(divisor.dtype) / divisor[position]
    result = scores.new_zeros(len(counts))
    result = result.index_add(0, position[is_token], scores[is_token]) - _logsumexp(scores, position, counts)
    if not bool(complete.all()):
        marked = (~complete).nonzero()[:, 0]
        whole = (logits[_indices(marked, tokens)].to(divisor.dtype) / divisor[marked, None]).log_softmax(-1)
        result = result.index_add(0, marked, whole.gather(1, chosen[marked, None])[:, 0])
    return result.view(tokens.shape)


def _logsumexp(scores: Tensor, position: Tensor, counts: Tensor) -> Tensor:
    """(positions,) of the scores of every position; 0 where it has none."""
    largest = torch.full(counts.shape, -torch.inf, dtype=scores.dtype, device=scores.device)
    largest.scatter_reduce_(0, position, scores.detach(), "amax")
    largest = largest.masked_fill(counts == 0, 0.0)
    # A position without scores has ln 1.
    total = (counts == 0).to(scores.dtype).index_add(0, position, (scores - largest[position]).exp())
    return total.log() + largest


def _indices(position: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Where a position is in `tokens`."""
    return (position,) if tokens.dim() == 1 else (position // tokens.shape[1], position % tokens.shape[1])


def _divisor(temperature: float | Tensor, tokens: Tensor, logits: Tensor) -> Tensor:
    """(positions,) the temperature, in the dtype to compute in."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    values = torch.as_tensor(temperature, dtype=dtype, device=logits.device)
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError("`temperature` must be finite and >= 0")
    # A greedy row keeps its token alone, whose probability is 1 at any temperature.
    values = values.masked_fill(values == 0, 1.0)
    try:
        return values.broadcast_to(tokens.shape).flatten()
    except RuntimeError:
        raise ValueError(
            f"`temperature` must broadcast to the shape {tuple(tokens.shape)} of `tokens`, got {tuple(values.shape)}"
        ) from None


def _check(logits: object, tokens: object, kept: object) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"`logits` must be a floating-point tensor, got {got}")
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"`tokens` must be a tensor of integers, got {got}")
    if not isinstance(kept, (KeptSets, KeptTokens)):
        raise TypeError(f"`kept` must be KeptSets or KeptTokens, got {type(kept).__name__}")
    if logits.dim() not in (2, 3) or tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"`logits` must have shape (rows, steps, vocab_size) or (n, vocab_size), and `tokens` the same without the "
            f"last dimension, got {tuple(logits.shape)} and {tuple(tokens.shape)}"
        )
    if tokens.device != logits.device:
        raise ValueError(f"`tokens` must be on the device of `logits`, {logits.device}, got {tokens.device}")
    shape = kept.log_mass.shape
    if shape != tokens.shape:
        raise ValueError(f"`kept` must have a set for each of the tokens, {tuple(tokens.shape)}, got {tuple(shape)}")


def _check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    # A GPU would not recover from a wrong index.
    if ids.numel() > 0 and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"`{name}` must hold ids from 0 to below the vocabulary size {vocab_size} of `logits`")


def _check_members(is_token: Tensor, position: Tensor, counts: Tensor, tokens: Tensor) -> None:
    found = torch.zeros_like(counts).index_add_(0, position, is_token.to(counts.dtype))
    missing = ((counts > 0) & (found == 0)).nonzero()
    if len(missing) > 0:
        first = int(missing[0])
        at = first if tokens.dim() == 1 else divmod(first, tokens.shape[1])
        raise ValueError(
            f"`tokens` must be among the kept ids of their positions, got {int(tokens.flatten()[first])} at {at}"
        )
