"""The plan of a call: the way from the model's scores to the next tokens, in as few ops as possible."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.knobs import PENALTIES, SETTINGS
from pygen.plan.noise import row_noise
from pygen.plan.order import ordered_items
from pygen.plan.stages import Called, Item, Knobs, Segment, segments_of
from pygen.processors.base import skips_hidden

if TYPE_CHECKING:
    from pygen.call.call import Call
    from pygen.ops import DecodeState

# Those that choose a token from the scores of its row alone.
_DRAWING_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
    GenerationMode.DOLA_GENERATION,
)
_INTEGER_KNOBS = [knob.name for knob in SETTINGS if knob.type is int]


@dataclass(frozen=True)
class Plan:
    """How scores become tokens in one call.

    Neighbours in `items` that one op can do form one stage, with Python processors between them; the last stage
    draws. Which items act depends on the step, so every segment of steps has its own stages. Tokens and scores equal
    those of the processors called one after the other.

    do_sample: one for all rows, or (rows,) bool.
    greedy_rows: 0.0, or (rows,) float32 with 0 for rows of temperature 0 and 1 for others; None without such rows.
    noise: the arguments of `ops.sample` that choose the noise.
    num_logprobs, num_raw_logprobs: how many of the best tokens to report log-probabilities of, beside the chosen one;
        of the scores that it is chosen by, or of the model's logits. 0 reports none.
    kept: the arguments of `ops.sample` that ask for the kept tokens; empty asks for none.
    renormalize: return scores as log-probabilities; draws do not depend on it.
    ends_invalid_rows: ids to end a row without a valid choice; empty unless `on_invalid` is "eos".
    """

    items: tuple[Item, ...] = ()
    do_sample: bool | Tensor = False
    greedy_rows: float | Tensor | None = None
    noise: Knobs = field(default_factory=dict)
    num_logprobs: int = 0
    num_raw_logprobs: int = 0
    kept: Knobs = field(default_factory=dict)
    keep_scores: bool = False
    renormalize: bool = False
    ends_invalid_rows: tuple[int, ...] = ()

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return segments_of(self.items)

    def segment(self, step: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.first <= step)

    @property
    def reads_history(self) -> bool:
        """Whether anything reads the tokens so far, except hidden ones."""
        penalizes = any(knob.name in item.knobs for item in self.items for knob in PENALTIES)
        return penalizes or any(skips_hidden(item.processor) for item in self.items)

    def stages(self, step: int = 0, choice: str | None = None) -> tuple[str, ...]:
        """The stages of a step in words. choice: describes how a token is chosen, if not by its score alone."""
        segment = self.segment(step)
        early = [
            ", ".join(item.label for item in stage.items) if isinstance(stage, Called) else " + ".join(stage.words)
            for stage in segment.early
        ]
        choice = choice or ("argmax" if self.do_sample is False else "draw")
        return (*early, " + ".join([*segment.last.words, choice]))

    def reasons(self) -> tuple[str, ...]:
        """One sentence per Python processor: why no op does it."""
        return tuple(f"`{item.name}` ({item.label}): {item.why}" for item in self.items if not item.knobs)

    def greedy_mask(self, state: DecodeState) -> Tensor | None:
        """(rows,) bool, the rows that take their best token; None where every row is drawn. Reads the device."""
        greedy = torch.zeros_like(state.finished)
        if isinstance(self.do_sample, Tensor):
            greedy |= ~self.do_sample
        if self.greedy_rows is not None:
            greedy |= torch.as_tensor(self.greedy_rows, device=greedy.device) == 0
        return greedy if bool(greedy.any()) else None

    def finish(self, scores: Tensor) -> Tensor:
        """A copy of processed scores in the form that the caller receives."""
        return torch.log_softmax(scores, dim=-1) if self.renormalize else scores.clone()


def make_plan(call: Call) -> Plan:
    """The plan of a call. Raises ValueError and TypeError for settings and processors; `pipeline.check_plan` and
    `pipeline.bind_plan` check what depends on tensors. With beams `noise` is empty: it belongs to the search."""
    config = call.config

    def per_row(name: str, value: Any) -> Any:
        return _per_row(name, value, call.batch_size, call.num_copies, call.prompt.input_ids.device)

    samples = config.do_sample is True
    sampled_rows = per_row("do_sample", call.settings.do_sample)
    knobs = {name: per_row(name, getattr(config, name, None)) for name in [knob.name for knob in SETTINGS]}
    greedy_rows = _greedy_rows(knobs["temperature"]) if samples else None
    do_sample = sampled_rows if samples and isinstance(sampled_rows, Tensor) else samples
    top, raw = num_top_logprobs(config), wants_raw_logprobs(config)
    num_logprobs = 0 if top is None else max(top, 1)
    return Plan(
        items=ordered_items(call, knobs, all_drawn=do_sample is True and greedy_rows is None),
        do_sample=do_sample,
        greedy_rows=greedy_rows,
        noise=row_noise(call) if (config.num_beams or 1) == 1 else {},
        num_logprobs=0 if raw else num_logprobs,
        num_raw_logprobs=num_logprobs if raw else 0,
        kept=_kept_arguments(call),
        keep_scores=bool(config.return_dict_in_generate and config.output_scores),
        renormalize=config.renormalize_logits is True and (config.num_beams or 1) == 1,
        ends_invalid_rows=tuple(call.stopping.eos_token_ids or ()) if vars(config)["on_invalid"] == "eos" else (),
    )


def num_top_logprobs(config: GenerationConfig) -> int | None:
    """The number of best tokens to return log-probabilities of; None without log-probabilities."""
    top, wanted = getattr(config, "top_logprobs", None), getattr(config, "output_logprobs", None)
    if not wanted:
        if top:
            raise ValueError(f"`top_logprobs`={top} needs `output_logprobs=True`")
        return None
    if not config.return_dict_in_generate:
        raise ValueError(f"`output_logprobs={wanted!r}` needs `return_dict_in_generate=True`")
    return top or 0


def wants_raw_logprobs(config: GenerationConfig) -> bool:
    """Whether log-probabilities are those of the model's logits, before anything shapes them."""
    return getattr(config, "output_logprobs", None) == "raw"


def _kept_arguments(call: Call) -> Knobs:
    """See `Plan.kept`."""
    limit = getattr(call.config, "kept_limit", None)
    if not getattr(call.config, "output_kept", None):
        if limit is not None:
            raise ValueError(f"`kept_limit`={limit} needs `output_kept=True`")
        return {}
    if not call.config.return_dict_in_generate:
        raise ValueError("`output_kept=True` needs `return_dict_in_generate=True`")
    if call.mode not in _DRAWING_MODES:
        raise NotImplementedError(
            f"`output_kept`=True is not available in {call.mode.value.replace('_', ' ')}, which does not draw a token "
            f"from the survivors of its row; greedy search, sampling, assisted decoding and DoLa do"
        )
    return {"output_kept": True} if limit is None else {"output_kept": True, "kept_limit": limit}


def _per_row(name: str, value: Any, batch_size: int, rows_per_prompt: int, device: torch.device) -> Any:
    """A scalar as it is; a sequence as a tensor (rows,), each entry repeated where there is one per prompt."""
    if not isinstance(value, (list, tuple, Tensor)) or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    dtype = torch.bool if name == "do_sample" else torch.int64 if name in _INTEGER_KNOBS else torch.float32
    if name == "temperature":
        # float32 would make the smallest ones 0, which is greedy.
        dtype = torch.float64
    values = torch.as_tensor(value, dtype=torch.float64 if name == "temperature" else None, device="cpu")
    if name == "do_sample" and values.dtype != torch.bool:
        raise TypeError(f"`do_sample` must hold bools, got {values.dtype}")
    rows = batch_size * rows_per_prompt
    if values.shape == (batch_size,):
        values = values.repeat_interleave(rows_per_prompt)
    elif values.shape != (rows,):
        per_prompt = f"one value per prompt ({batch_size}) or " if rows_per_prompt > 1 else ""
        raise ValueError(f"`{name}` must hold {per_prompt}one value per row ({rows}), got shape {tuple(values.shape)}")
    return values.to(dtype=dtype, device=device)


def _greedy_rows(temperature: object) -> float | Tensor | None:
    """See `Plan.greedy_rows`."""
    if isinstance(temperature, Tensor):
        return (temperature > 0).float() if bool((temperature == 0).any()) else None
    return 0.0 if temperature == 0 else None
