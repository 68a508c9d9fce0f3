"""What kernels read of the checked arguments of a call: knobs as tables, tensors, workspace, sizes of launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pygen.triton_kernels import _rows, _scan, _scores
from torch import Tensor

if TYPE_CHECKING:
    from pygen.ops._noise import Noise
    from pygen.ops._shaping import Shaping

_FILTERS = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OFF_AT_ONE = ("top_p", "typical_p")
_FLOATS = (*_FILTERS, "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")
_COUNTERS = ("min_tokens_to_keep", "no_repeat_ngram_size", "prompt_lengths")

# Rows up to here are scanned, filtered and drawn from by one program, in one launch.
SMALL_VOCABULARY = 2 * _scan.SCAN_TILE.value
_LARGEST_INT32 = 2**31 - 1
# Without a GPU to ask, in the interpreter: enough that rows are split.
_PROGRAMS_WITHOUT_GPU = 8
_PROGRAMS_PER_PROCESSOR = 4


class RowArguments:
    """The arguments that the kernels of `sample` and `process_logits` share; made once, for any number of launches.

    stored: (rows, vocab_size) float32, where the scores of whole rows go; (1, 1) if no row can need it.
    races: whether the scan draws from rows that nothing filters.
    """

    def __init__(self, shaping: Shaping, noise: Noise | None, stored: Tensor, modes: int, races: bool) -> None:
        rows, vocab_size, device = shaping.like.rows, shaping.like.vocab_size, shaping.like.device
        counted = may_act(shaping.presence_penalty, 0) or may_act(shaping.frequency_penalty, 0)
        no_floats = torch.zeros(1, device=device)
        no_int64 = torch.zeros(1, dtype=torch.int64, device=device)
        no_int32 = torch.zeros(1, dtype=torch.int32, device=device)
        knobs = _float_knobs(shaping)
        counters = [_of_rows(getattr(shaping, name), shaping).clamp(max=_LARGEST_INT32) for name in _COUNTERS]
        counters.append(_flags(shaping, knobs, counters[1], races))
        real_room = _rows.real_room(vocab_size)
        integer_room = _rows.integer_room(vocab_size, counted)
        reals = torch.empty(rows * real_room, dtype=torch.float32, device=device)
        integers = torch.empty(rows * integer_room, dtype=torch.int32, device=device)

        tables = 0
        given: list[tuple[Tensor, int]] = []
        for bit, table, none in (
            (_scores.HISTORY, shaping.input_ids, no_int64),
            (_scores.BIAS, shaping.bias, no_floats),
            (_scores.SUPPRESS, shaping.suppress, no_int64),
            (_scores.BITMASK, shaping.token_bitmask, no_int32),
        ):
            if table is None or table.numel() == 0:
                given.append((none, 0))
            else:
                tables |= bit.value
                given.append((table, table.stride(0) if table.dim() == 2 else 0))
        history, bias, suppress, bitmask = given
        suppress_count = 0 if shaping.suppress is None else shaping.suppress.shape[-1]

        seeds, steps = torch.zeros(rows, dtype=torch.int64, device=device), no_int64
        given_noise, noise_stride = no_floats, 0
        if noise is not None:
            seeds = noise.seeds
            if noise.steps is not None:
                steps, modes = noise.steps, modes | _rows.STEPS_GIVEN.value
            if noise.given is not None:
                given_noise, noise_stride = noise.given, noise.given.stride(0)
                modes |= _rows.NOISE_GIVEN.value
        if shaping.history_steps is not None:
            # Those of a state, which the noise goes by as well.
            steps, modes = shaping.history_steps, modes | _rows.HISTORY_GROWS.value

        self._shape = (
            vocab_size,
            rows,
            torch.stack(list(knobs.values())),
            torch.stack(counters).to(torch.int32),
            *history,
        )
        self._tables = (
            *bias, *suppress, suppress_count, *bitmask, tables, modes, given_noise, noise_stride, seeds, steps,
        )  # fmt: skip
        stored_stride = stored.stride(0) if stored.shape[0] == rows else 0
        self._workspace = (reals, real_room, integers, integer_room, stored, stored_stride)

    def of_call(self, logits: Tensor, step: int, length: int) -> tuple[Any, ...]:
        """In the order of the kernels' parameters."""
        step = step - 2**32 if step >= 2**31 else step
        return (logits, logits.stride(0), *self._shape, length, *self._tables, step, *self._workspace)

    def knobs_and_workspace(self) -> tuple[Any, ...]:
        return (*self._shape[2:4], *self._workspace)


def _float_knobs(shaping: Shaping) -> dict[str, Tensor]:
    """(rows,) float32 each; top_k is at least min_tokens_to_keep, and 0 where it is the whole vocabulary."""
    knobs = {name: _of_rows(getattr(shaping, name), shaping) for name in _FLOATS}
    vocab_size = shaping.like.vocab_size
    top_k = knobs["top_k"].clamp(max=vocab_size)
    top_k = torch.where(top_k > 0, top_k.maximum(_of_rows(shaping.min_tokens_to_keep, shaping)), 0)
    knobs["top_k"] = torch.where(top_k < vocab_size, top_k, 0)
    return {name: knob.to(torch.float32) for name, knob in knobs.items()}


def _flags(shaping: Shaping, knobs: dict[str, Tensor], ngram_sizes: Tensor, races: bool) -> Tensor:
    """(rows,) int64: what acts on a row, as the kernels read it."""
    drawn = knobs["temperature"] > 0
    flags = torch.zeros_like(ngram_sizes)
    for bit, name in enumerate(_FILTERS):
        acts = knobs[name] < 1 if name in _OFF_AT_ONE else knobs[name] > 0
        flags += (acts & drawn) << bit
    nucleus = (flags & 7) == 4
    counted = (knobs["presence_penalty"] != 0) | (knobs["frequency_penalty"] != 0)
    penalized = (knobs["repetition_penalty"] != 1) | counted
    marked = penalized | (ngram_sizes > 0)
    if shaping.input_ids is None or shaping.input_ids.numel() == 0:
        penalized, counted, marked = (torch.zeros_like(drawn) for _ in range(3))
    if shaping.suppress is not None and shaping.suppress.numel() > 0:
        marked = torch.ones_like(drawn)
    for bit, holds in (
        (_rows.RACES, drawn & (flags == 0) & races),
        (_rows.NUCLEUS, nucleus),
        (_rows.PENALIZED, penalized),
        (_rows.COUNTED, counted),
        (_rows.MARKED, marked),
    ):
        flags += bit.value * holds
    return flags


def _of_rows(knob: float | Tensor, shaping: Shaping) -> Tensor:
    if isinstance(knob, Tensor):
        return knob
    dtype = torch.float32 if isinstance(knob, float) else torch.int64
    return torch.full((shaping.like.rows,), knob, dtype=dtype, device=shaping.like.device)


def may_act(knob: float | Tensor, neutral: float) -> bool:
    """Whether some row may have another value; the values of a tensor are not looked at, as they may be on a GPU."""
    return isinstance(knob, Tensor) or knob != neutral


def may_filter(shaping: Shaping) -> bool:
    return any(may_act(getattr(shaping, name), 1 if name in _OFF_AT_ONE else 0) for name in _FILTERS)


def parts_of_rows(rows: int, vocab_size: int, device: torch.device) -> tuple[int, int]:
    """How many programs share a row of the scan, and how many tokens each of them takes."""
    programs = _PROGRAMS_WITHOUT_GPU
    if device.type == "cuda":
        programs = _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    tiles = -(-vocab_size // _scan.SCAN_TILE.value)
    parts = max(1, min(tiles, _scan.MAX_PARTS.value, -(-programs // max(rows, 1))))
    tiles_of_part = -(-tiles // parts)
    return -(-tiles // tiles_of_part), tiles_of_part * _scan.SCAN_TILE.value


def is_aligned(logits: Tensor) -> bool:
    """Whether every row starts where vectors may be loaded."""
    return logits.stride(0) % 8 == 0 and logits.data_ptr() % 16 == 0
