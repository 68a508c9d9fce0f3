"""`process_logits` in plain torch, and the pipeline it shares with `sample`.

Scores are float32 at every stage, as in the kernels. Probabilities, entropies and cumulative masses are float64, so
that the kept set is that of exact arithmetic for these scores. A kernel may differ within its rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.knobs import KNOBS, ShapingKnobs

if TYPE_CHECKING:
    from typing_extensions import Unpack

OK, NAN, ALL_MASKED, POS_INF = range(4)

TOP_H_CANDIDATES = 100

Knob = float | Tensor
IntKnob = int | Tensor


def process_logits(
    logits: Tensor,
    *,
    do_sample: bool | Tensor = True,
    input_ids: Tensor | None = None,
    prompt_lengths: IntKnob | None = None,
    bias: Tensor | None = None,
    suppress: Sequence[int] | Tensor | None = None,
    token_bitmask: Tensor | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> Tensor:
    """Returns the scores of `shape_rows`."""
    scores, _, _ = shape_rows(
        logits,
        do_sample=do_sample,
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        bias=bias,
        suppress=suppress,
        token_bitmask=token_bitmask,
        **knobs,
    )
    return scores


def shape_rows(
    logits: Tensor,
    *,
    do_sample: bool | Tensor,
    input_ids: Tensor | None,
    prompt_lengths: IntKnob | None,
    bias: Tensor | None,
    suppress: Sequence[int] | Tensor | None,
    token_bitmask: Tensor | None,
    **knobs: Unpack[ShapingKnobs],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scores (rows, vocab_size) float32, status (rows,) int32, and which rows to draw (rows,) bool.

    A greedy row, and a row whose status is not OK, keep their scores from before the temperature; they are not drawn.
    """
    rows, vocab_size = logits.shape
    scores = torch.empty(rows, vocab_size, dtype=torch.float32, device=logits.device)
    status = torch.empty(rows, dtype=torch.int32, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.bool, device=logits.device)
    for r in range(rows):
        x = logits[r].float()
        knob = _knobs_of_row(knobs, r)
        if bias is not None:
            x = x + _row_of(bias, r)
        if input_ids is not None:
            history = input_ids[r]
            in_vocabulary = (history >= 0) & (history < vocab_size)
            prompt_length = 0 if prompt_lengths is None else int(_at(prompt_lengths, r))
            generated = in_vocabulary & (torch.arange(len(history), device=history.device) >= prompt_length)
            x = penalize_repetition(x, history[in_vocabulary], knob["repetition_penalty"])
            x = penalize_counts(x, history[generated], knob["presence_penalty"], knob["frequency_penalty"])
            x = ban_repeated_ngrams(x, history, int(knob["no_repeat_ngram_size"]))
        if suppress is not None:
            x = suppress_tokens(x, _row_of(torch.as_tensor(suppress, dtype=torch.int64, device=x.device), r))
        if token_bitmask is not None:
            x = apply_token_bitmask(x, _row_of(token_bitmask, r))

        drawn[r] = bool(_at(do_sample, r)) and knob["temperature"] > 0
        scores[r] = x
        status[r] = row_status(x)
        if not drawn[r] or status[r] != OK:
            drawn[r] = False
            continue

        s = x / fitting_temperature(knob["temperature"], x)
        keep = min(int(knob["min_tokens_to_keep"]), vocab_size)
        s = keep_top_n_sigma(s, float(knob["top_n_sigma"]), keep)
        s = keep_top_h(s, float(knob["top_h"]))
        s = keep_top_k(s, int(knob["top_k"]), keep)
        s = keep_top_p(s, float(knob["top_p"]), keep)
        s = keep_min_p(s, float(knob["min_p"]), keep)
        s = keep_typical(s, float(knob["typical_p"]), keep)
        s = keep_epsilon(s, float(knob["epsilon_cutoff"]), keep)
        s = keep_eta(s, float(knob["eta_cutoff"]), keep)
        scores[r] = s
    return scores, status, drawn


def penalize_repetition(x: Tensor, seen_ids: Tensor, repetition_penalty: Tensor) -> Tensor:
    """Penalises every distinct seen id: x * penalty if x < 0, else x / penalty.

    Keskar et al. 2019, with Hugging Face's sign rule.
    """
    seen = torch.zeros_like(x, dtype=torch.bool)
    seen[seen_ids] = True
    return torch.where(seen, torch.where(x < 0, x * repetition_penalty, x / repetition_penalty), x)


def penalize_counts(x: Tensor, generated_ids: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """Penalises ids generated `count` > 0 times: x - count * frequency - presence (OpenAI API reference)."""
    count = torch.bincount(generated_ids, minlength=len(x)).float()
    return torch.where(count > 0, x - count * frequency - presence, x)


def ban_repeated_ngrams(x: Tensor, history: Tensor, ngram_size: int) -> Tensor:
    """Bans every y for which the history already contains the last ngram_size - 1 ids followed by y.

    An id outside the vocabulary equals no id, not even itself.
    """
    ids = history.tolist()
    if ngram_size == 0 or len(ids) < ngram_size:
        return x
    x = x.clone()
    suffix = ids[len(ids) - (ngram_size - 1) :]
    if all(0 <= token_id < len(x) for token_id in suffix):
        for start in range(len(ids) - ngram_size + 1):
            *prefix, token_id = ids[start : start + ngram_size]
            if prefix == suffix and 0 <= token_id < len(x):
                x[token_id] = -math.inf
    return x


def suppress_tokens(x: Tensor, token_ids: Tensor) -> Tensor:
    """Sets the given ids to -inf, and ignores ids outside the vocabulary."""
    inside = (token_ids >= 0) & (token_ids < len(x))
    return x.index_fill(0, token_ids[inside], -math.inf)


def apply_token_bitmask(x: Tensor, words: Tensor) -> Tensor:
    """Sets ids that are not allowed to -inf. Bit i % 32 of word i // 32 allows id i (xgrammar's format)."""
    token_ids = torch.arange(len(x), device=x.device)
    allowed = (words[token_ids // 32] >> (token_ids % 32)) & 1
    return x.masked_fill(allowed == 0, -math.inf)


def row_status(x: Tensor) -> int:
    """Returns the status of a row, the worst fault first."""
    if x.isnan().any():
        return NAN
    if (x == math.inf).any():
        return POS_INF
    if (x == -math.inf).all():
        return ALL_MASKED
    return OK


def fitting_temperature(temperature: Tensor, x: Tensor) -> Tensor:
    """Returns the temperature, or, if the largest score would exceed float32's range, one that makes it 2^100."""
    magnitude = x.max().abs()
    return temperature if (magnitude / temperature).isfinite() else magnitude * 2.0**-100


def keep_top_n_sigma(s: Tensor, n: float, min_tokens_to_keep: int) -> Tensor:
    """Keeps s >= max s - n * sigma, and s >= the min_tokens_to_keep-th largest (Tang et al. 2024). 0 is off.

    sigma is the standard deviation of the scores that are not -inf.
    """
    if n == 0:
        return s
    left = s[s > -math.inf].double()
    cut = left.max() - n * left.std(correction=0)
    kept = (s.double() >= cut) | (s >= s.topk(min_tokens_to_keep).values[-1])
    return s.masked_fill(~kept, -math.inf)


def keep_top_h(s: Tensor, top_h: float) -> Tensor:
    """Keeps the entropy-bounded prefix of the 100 largest scores (Potraghloo et al. 2025). 0 is off.

    With p their softmax and H its entropy, it keeps tokens while the cumulative -sum p ln p is at most top_h * H, and
    always the first.
    """
    if top_h == 0:
        return s
    order = _descending(s)[:TOP_H_CANDIDATES]
    p = probabilities(s[order])
    cumulative = torch.special.entr(p).cumsum(0)
    kept = cumulative <= top_h * cumulative[-1]
    kept[0] = True
    return _keep_only(s, order[kept])


def keep_top_k(s: Tensor, top_k: int, min_tokens_to_keep: int) -> Tensor:
    """Keeps s >= the k-th largest, k = max(top_k, min_tokens_to_keep): all ties at the boundary stay. 0 is off."""
    if top_k == 0:
        return s
    k = min(max(top_k, min_tokens_to_keep), len(s))
    return s.masked_fill(s < s.topk(k).values[-1], -math.inf)


def keep_top_p(s: Tensor, top_p: float, min_tokens_to_keep: int) -> Tensor:
    """Keeps tokens from the largest down while the mass strictly before them is below top_p (Holtzman et al. 2020).

    Of equal scores the highest id comes first. 1 is off.
    """
    if top_p >= 1:
        return s
    order = torch.sort(s, stable=True).indices.flip(0)
    p = probabilities(s[order])
    mass_before = torch.cat([p.new_zeros(1), p.cumsum(0)[:-1]])
    kept = mass_before < top_p
    kept[:min_tokens_to_keep] = True
    return _keep_only(s, order[kept])


def keep_min_p(s: Tensor, min_p: float, min_tokens_to_keep: int) -> Tensor:
    """Keeps p >= min_p * max p, and the min_tokens_to_keep largest (Nguyen et al. 2024).

    Of equal scores the lowest ids come first. 0 is off.
    """
    if min_p == 0:
        return s
    p = probabilities(s)
    kept = p >= min_p * p.max()
    kept[_descending(s)[:min_tokens_to_keep]] = True
    return s.masked_fill(~kept, -math.inf)


def keep_typical(s: Tensor, typical_p: float, min_tokens_to_keep: int) -> Tensor:
    """Keeps tokens whose information -ln p is close to the entropy H (Meister et al. 2022). 1 is off.

    With d = abs(-ln p - H) ascending, it keeps d <= d_j, where j is the first index at which the inclusive cumulative
    mass reaches typical_p. It also keeps the first min_tokens_to_keep; of equal d the lowest ids come first.
    """
    if typical_p >= 1:
        return s
    p = probabilities(s)
    distance = (-torch.log_softmax(s.double(), 0) - torch.special.entr(p).sum()).abs()
    order = torch.sort(distance, stable=True).indices
    below = int((p[order].cumsum(0) < typical_p).sum())
    kept = distance <= distance[order[min(below, len(s) - 1)]]
    kept[order[:min_tokens_to_keep]] = True
    return s.masked_fill(~kept, -math.inf)


def keep_epsilon(s: Tensor, cutoff: float, min_tokens_to_keep: int) -> Tensor:
    """Keeps p >= cutoff, and s >= the min_tokens_to_keep-th largest (Hewitt et al. 2022). 0 is off."""
    if cutoff == 0:
        return s
    return _keep_probable(s, cutoff, min_tokens_to_keep)


def keep_eta(s: Tensor, eta_cutoff: float, min_tokens_to_keep: int) -> Tensor:
    """Applies the epsilon filter at min(eta_cutoff, sqrt(eta_cutoff) * exp(-H)) (Hewitt et al. 2022). 0 is off."""
    if eta_cutoff == 0:
        return s
    entropy = float(torch.special.entr(probabilities(s)).sum())
    return _keep_probable(s, min(eta_cutoff, math.sqrt(eta_cutoff) * math.exp(-entropy)), min_tokens_to_keep)


def probabilities(s: Tensor) -> Tensor:
    """Returns the softmax of the scores in float64; removed entries have probability 0."""
    return torch.softmax(s.double(), dim=-1)


def _keep_probable(s: Tensor, cutoff: float, min_tokens_to_keep: int) -> Tensor:
    kept = (probabilities(s) >= cutoff) | (s >= s.topk(min_tokens_to_keep).values[-1])
    return s.masked_fill(~kept, -math.inf)


def _keep_only(s: Tensor, token_ids: Tensor) -> Tensor:
    kept = torch.zeros_like(s, dtype=torch.bool)
    kept[token_ids] = True
    return s.masked_fill(~kept, -math.inf)


def _descending(s: Tensor) -> Tensor:
    """Returns token ids from the largest score to the smallest; of equal scores the lower id comes first."""
    return torch.sort(s, descending=True, stable=True).indices


def _at(value: bool | float | Tensor, row: int) -> bool | float:
    return value[row].item() if isinstance(value, Tensor) else value


def _knobs_of_row(knobs: Mapping[str, Any], row: int) -> dict[str, Tensor]:
    """Returns every knob of the table for one row, as the float32 or int64 that the kernels receive."""
    of_row = {}
    for name, kind, neutral in ((knob.name, knob.type, knob.neutral) for knob in KNOBS):
        value = neutral if knobs.get(name) is None else _at(knobs[name], row)
        of_row[name] = torch.tensor(value, dtype=torch.int64 if kind is int else torch.float32, device="cpu")
    return of_row


def _row_of(table: Tensor, row: int) -> Tensor:
    """Returns row `row` of a (rows, n) table, or a shared (n,) table."""
    return table[row] if table.dim() == 2 else table
