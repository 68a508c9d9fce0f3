"""`compute_transition_scores`: the scores of the tokens that were chosen, picked out of the scores of a generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score that every generated token had when it was chosen.

        for row, step in the result:
            r = row if beam_indices is None else beam_indices[row, step]
            result[row, step] = 0 if r < 0 else scores[step][r, sequences[row, step - steps]]

    With beams, the steps are those of the longest hypothesis, and tokens after the end of a shorter one score 0. So do
    ids that the scores do not have, such as pads beyond them. In
    beam search scores are log-probabilities, in greedy search and sampling they are logits.

    Arguments:
        sequences: (rows, length) integer ids; the last `steps` columns were generated.
        scores: one (score_rows, vocab_size) tensor per step: the output's `scores`, or its `logits`.
        beam_indices: (rows, at least steps) integers, the row of `scores` that each token comes from, -1 after the end
            of a hypothesis. None means that row r of `scores` is row r of `sequences`.
        normalize_logits: takes ln softmax over the vocabulary first.

    Returns (rows, steps) in the dtype of the scores. ValueError and TypeError for shapes and dtypes that do not fit.
    """
    _check(sequences, scores, beam_indices)
    if beam_indices is None:
        origin = torch.arange(scores[0].shape[0], device=sequences.device)[:, None].expand(-1, len(scores))
    else:
        origin = beam_indices[:, : int((beam_indices >= 0).sum(-1).max())].long()
    steps = origin.shape[1]
    token_ids = sequences[:, sequences.shape[1] - steps :]
    ended = (origin < 0) | (token_ids < 0) | (token_ids >= scores[0].shape[1])
    origin = origin.masked_fill(ended, 0)
    token_ids = token_ids.masked_fill(ended, 0).long()
    chosen = scores[0].new_zeros(token_ids.shape)
    for step in range(steps):
        row_scores = scores[step][origin[:, step]]
        if normalize_logits:
            row_scores = row_scores.log_softmax(-1)
        chosen[:, step] = row_scores.gather(1, token_ids[:, step, None])[:, 0]
    return chosen.masked_fill(ended, 0)


def _check(sequences: Tensor, scores: Sequence[Tensor], beam_indices: Tensor | None) -> None:
    given = {"sequences": sequences} if beam_indices is None else {"sequences": sequences, "beam_indices": beam_indices}
    for name, ids in given.items():
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype is torch.bool:
            kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"`{name}` must be a tensor of integers, got {kind}")
        if ids.ndim != 2 or ids.shape[0] == 0:
            raise ValueError(f"`{name}` must have shape (rows, length), got {tuple(ids.shape)}")
    if not isinstance(scores, Sequence) or not all(isinstance(step, Tensor) for step in scores):
        raise TypeError(
            f"`scores` must be a tuple of tensors (set `output_scores=True` and `return_dict_in_generate=True`), "
            f"got {type(scores).__name__}"
        )
    shapes = {tuple(step.shape) for step in scores}
    if len(shapes) != 1 or len(scores[0].shape) != 2:
        raise ValueError(f"`scores` must hold tensors of one shape (rows, vocab_size), got {sorted(shapes)}")
    rows, score_rows = sequences.shape[0], scores[0].shape[0]
    if beam_indices is None:
        if score_rows != rows:
            raise ValueError(
                f"`scores` must hold {rows} rows, as `sequences` does without `beam_indices`, got {score_rows}"
            )
        steps = len(scores)
    else:
        if beam_indices.shape[0] != rows or int(beam_indices.max()) >= score_rows:
            raise ValueError(
                f"`beam_indices` must hold {rows} rows of values below {score_rows}, got shape "
                f"{tuple(beam_indices.shape)} and values up to {int(beam_indices.max())}"
            )
        steps = int((beam_indices >= 0).sum(-1).max())
        if steps > len(scores):
            raise ValueError(f"`beam_indices` must not hold more than the {len(scores)} steps of `scores`, got {steps}")
    if steps > sequences.shape[1]:
        raise ValueError(
            f"`sequences` must hold at least {steps} tokens a row, as `scores` does, got {sequences.shape[1]}"
        )
