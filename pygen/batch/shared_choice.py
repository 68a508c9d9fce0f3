"""The choice of the next token of all rows of a batch, each with its own settings, in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pygen.batch.row import Row, end_invalid
from pygen.knobs import BY_NAME, NEUTRAL, PENALTIES
from pygen.ops import SampleOutput, TokenLogprobs, prepare_sample, token_logprobs

# An id outside every vocabulary, which ops ignore.
_NO_TOKEN = -1
# Steps for which a history has columns; then it is made anew.
_STEPS = 64


class SharedChoice:
    """Chooses for the same rows, step by step, as long as none of them changes its settings."""

    def __init__(self, rows: Sequence[Row], logits: Tensor) -> None:
        """`logits`: (rows, vocab_size), an example."""
        self._rows = [*rows]
        self._segments = [row.segment() for row in rows]
        self._num_raw = max(row.plan.num_raw_logprobs for row in rows)
        knobs, device = _merged(rows), logits.device
        draws = knobs["do_sample"] is not False
        self._steps = torch.tensor([row.step for row in rows], device=device)
        reads_history = any(knob.name in knobs for knob in PENALTIES)
        self._history = _History(rows, device) if reads_history else None
        self._op = prepare_sample(
            logits,
            **knobs,
            **_kept(rows),
            logprobs=max(row.plan.num_logprobs for row in rows),
            seed=torch.tensor([row.seed for row in rows], device=device) if draws else None,
            step=self._steps,
            **({} if self._history is None else self._history.arguments()),
        )

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether the next step is of these rows, with the settings that were merged."""
        return (
            len(rows) == len(self._rows)
            and all(row is own for row, own in zip(rows, self._rows, strict=True))
            and all(row.segment() is own for row, own in zip(rows, self._segments, strict=True))
            and (self._history is None or not self._history.is_full)
        )

    def __call__(self, logits: Tensor) -> tuple[SampleOutput, TokenLogprobs | None]:
        """The choice from `logits` (rows, vocab_size), and log-probabilities of the logits if a row asks for them.

        Later calls write into the same tensors.
        """
        history = self._history
        output = self._op(logits, length=None if history is None else history.end)
        end_invalid(self._rows, output, logits.shape[1])
        self._steps += 1
        if history is not None:
            history.append(output.token_ids)
        return output, token_logprobs(logits, output.token_ids, top=self._num_raw) if self._num_raw > 0 else None


class _History:
    """The texts of the rows, aligned on the right, with columns for some more tokens.

    end: columns in use.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        texts = [row.text_ids for row in rows]
        self.end = max(map(len, texts))
        padded = [[_NO_TOKEN] * (self.end - len(text)) + text + [_NO_TOKEN] * _STEPS for text in texts]
        self._ids = torch.tensor(padded, device=device)
        self._prompt_lengths = torch.tensor([self.end - row.step for row in rows], device=device)

    @property
    def is_full(self) -> bool:
        return self.end == self._ids.shape[1]

    def arguments(self) -> dict[str, Any]:
        return {"input_ids": self._ids, "prompt_lengths": self._prompt_lengths}

    def append(self, token_ids: Tensor) -> None:
        self._ids[:, self.end] = token_ids
        self.end += 1


def _kept(rows: Sequence[Row]) -> dict[str, Any]:
    """The arguments that ask for the kept tokens, with the largest limit of the rows."""
    limits = [row.kept_limit for row in rows if row.kept_limit is not None]
    return {"output_kept": True, "kept_limit": max(limits)} if limits else {}


def _merged(rows: Sequence[Row]) -> dict[str, Any]:
    """The knobs of all rows as arguments of `ops.sample`: a number where they agree, else one for each row."""
    each = [_knobs(row) for row in rows]
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for knobs in each for name in knobs if name != "suppress"):
        neutral = True if name == "do_sample" else NEUTRAL[name]
        values = [knobs.get(name, neutral) for knobs in each]
        merged[name] = values[0] if len({*values}) == 1 else _per_row(name, values)
    suppressed = [knobs.get("suppress", ()) for knobs in each]
    longest = max(map(len, suppressed))
    if len({*suppressed}) == 1:
        merged["suppress"] = suppressed[0] or None
    else:
        merged["suppress"] = torch.tensor([[*ids, *[_NO_TOKEN] * (longest - len(ids))] for ids in suppressed])
    return merged


def _knobs(row: Row) -> dict[str, Any]:
    knobs = {name: _number(value) for name, value in row.segment().last.knobs.items()}
    knobs["do_sample"] = bool(row.plan.do_sample)
    if row.plan.greedy_rows is not None:
        knobs.setdefault("temperature", _number(row.plan.greedy_rows))
    return knobs


def _number(value: Any) -> Any:
    """The number in a setting that was given as one per row, for a single row."""
    return value.reshape(-1)[0].item() if isinstance(value, Tensor) else value


def _per_row(name: str, values: list[Any]) -> Any:
    if name == "do_sample":
        return torch.tensor(values)
    return torch.tensor(values, dtype=torch.int64 if BY_NAME[name].type is int else torch.float64)
