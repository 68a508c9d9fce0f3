"""`sample` in plain torch: the scores of `process_logits`, the exponential race, log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pygen import rng as noise_sources
from pygen.knobs import ShapingKnobs
from pygen.ops._kept_tokens import KeptRows
from pygen.ops._outputs import RowStatus, SampleOutput, TopLogprobs
from pygen.reference.process_logits import IntKnob, shape_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


def sample(
    logits: Tensor,
    *,
    do_sample: bool | Tensor = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: Sequence[int] | Tensor | None = None,
    token_bitmask: Tensor | None = None,
    seed: int | Sequence[int] | Tensor | None = None,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    logprobs: int = 0,
    output_kept: bool = False,
    kept_limit: int = 1024,
    **knobs: Unpack[ShapingKnobs],
) -> SampleOutput:
    """Draws from the survivors of `process_logits` with `race_winners`; rows without a draw take their best token."""
    scores, status, drawn = shape_rows(
        logits,
        do_sample=do_sample,
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        bias=bias,
        suppress=suppress,
        token_bitmask=token_bitmask,
        **knobs,
    )
    token_ids = argmax_lowest(scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf))
    if do_sample is not False:
        exponential = exponential_noise(scores, seed=seed, step=step, noise=noise, rng=rng, generator=generator)
        token_ids = torch.where(drawn, race_winners(scores, exponential), token_ids)
    kept = kept_tokens(scores, status, drawn, token_ids, kept_limit) if output_kept else None
    if logprobs == 0:
        return SampleOutput(token_ids, None, None, status, kept)
    return SampleOutput(token_ids, *log_probabilities(scores, status, token_ids, logprobs), status, kept)


def kept_tokens(scores: Tensor, status: Tensor, drawn: Tensor, token_ids: Tensor, limit: int) -> KeptRows:
    """Returns the survivors of every row: of a drawn row its finite scores, of a greedy one its token; else nothing."""
    vocab_size = scores.shape[1]
    ids = torch.arange(vocab_size, device=scores.device)
    survives = (
        torch.where(drawn[:, None], scores > -math.inf, ids == token_ids[:, None]) & (status == RowStatus.OK)[:, None]
    )
    log_mass = scores.double().masked_fill(~survives, -math.inf).logsumexp(dim=1).float()
    # Removed ids sort behind all others.
    first = torch.where(survives, ids, vocab_size).sort(dim=1).values[:, :limit]
    return KeptRows(first.masked_fill(first == vocab_size, -1).int(), survives.sum(dim=1).int(), log_mass)


def exponential_noise(
    scores: Tensor,
    *,
    seed: int | Sequence[int] | Tensor | None,
    step: int | Tensor,
    noise: Tensor | None,
    rng: str,
    generator: torch.Generator | None,
) -> Tensor:
    """Returns the noise E of every element, (rows, vocab_size) float32: given, torch's, or Philox's."""
    rows, vocab_size = scores.shape
    if noise is not None:
        return noise
    if rng == "torch":
        return noise_sources.torch_exponential(rows, vocab_size, generator, scores.device)
    seeds, steps = seeds_and_steps(seed, step, generator, rows, scores.device)
    return noise_sources.philox_exponential(seeds, steps, vocab_size)


def seeds_and_steps(
    seed: int | Sequence[int] | Tensor | None,
    step: int | Tensor,
    generator: torch.Generator | None,
    rows: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Returns the row seeds and the steps of a call, (rows,) int64 each; draws a missing seed."""
    if seed is None:
        seed = noise_sources.draw_seed(generator)
    if isinstance(seed, int):
        seeds = noise_sources.row_seeds(seed, rows)
    elif isinstance(seed, Tensor):
        seeds = seed
    else:
        seeds = torch.tensor([noise_sources.as_int64(word) for word in seed], dtype=torch.int64, device="cpu")
    steps = step if isinstance(step, Tensor) else torch.full((rows,), step, dtype=torch.int64, device="cpu")
    return seeds.to(device), steps.to(device)


def race_winners(scores: Tensor, exponential: Tensor) -> Tensor:
    """Returns the argmax over survivors of score - ln E: token i wins with probability softmax(scores)[i].

    The comparison is in float64, so that rounding decides nothing. Ties go to the lowest id. A survivor beats every
    removed token, whatever its noise.
    """
    # Subtract the largest score first: beside 1e20, a float64 would round the noise away.
    shifted = scores.double() - scores.double().amax(dim=1, keepdim=True)
    race = shifted - exponential.double().log()
    race = race.clamp(min=torch.finfo(torch.float64).min)
    return argmax_lowest(race.masked_fill(scores == -math.inf, -math.inf))


def argmax_lowest(values: Tensor) -> Tensor:
    """Returns the lowest index of the largest value of every row."""
    token_ids = torch.arange(values.shape[1], device=values.device)
    largest = values.amax(dim=1, keepdim=True)
    return torch.where(values == largest, token_ids, values.shape[1]).amin(dim=1)


def log_probabilities(scores: Tensor, status: Tensor, token_ids: Tensor, n: int) -> tuple[Tensor, TopLogprobs]:
    """Returns ln softmax(scores) of the chosen tokens, and of the n best survivors."""
    logprobs = torch.log_softmax(scores.double(), dim=1).float()
    own = logprobs.gather(1, token_ids[:, None])[:, 0].masked_fill(status != RowStatus.OK, math.nan)
    return own, best_of(scores, logprobs, status, n)


def best_of(scores: Tensor, logprobs: Tensor, status: Tensor, n: int) -> TopLogprobs:
    """Returns the n best survivors of every row by score, with their entries of `logprobs` (rows, vocab_size)."""
    rows, vocab_size = scores.shape
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]
    top_ids = torch.full((rows, n), -1, dtype=torch.int64, device=scores.device)
    top_logprobs = torch.full((rows, n), -math.inf, device=scores.device)
    top_logprobs[:, : min(n, vocab_size)] = logprobs.gather(1, order)
    top_ids[:, : min(n, vocab_size)] = order.masked_fill(scores.gather(1, order) == -math.inf, -1)
    invalid = status != RowStatus.OK
    top_logprobs[invalid], top_ids[invalid] = math.nan, -1
    return TopLogprobs(top_ids, top_logprobs)
