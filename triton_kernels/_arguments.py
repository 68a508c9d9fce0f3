"""What kernels read of the checked arguments of a call: knobs as tables, tensors, workspace, sizes of launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pygen.triton_kernels import _knobs, _row, _scan, _scores, _workspace
from pygen.triton_kernels._row import RowTables
from pygen.triton_kernels._workspace import Workspace
from torch import Tensor

if TYPE_CHECKING:
    from pygen.ops._noise import Noise
    from pygen.ops._shaping import Shaping

# One program scans, filters and draws from a row up to here, in one launch.
SMALL_VOCABULARY = 2 * _scan.SCAN_TILE.value
_LARGEST_INT32 = 2**31 - 1
# In the interpreter, which runs without a GPU: enough programs that rows are split.
_PROGRAMS_WITHOUT_GPU = 8
_PROGRAMS_PER_PROCESSOR = 4


class RowArguments:
    """The arguments that the kernels of `sample` and `process_logits` share; made once, for any number of launches.

    scores: (rows, vocab_size) float32, where the scores of whole rows go; (1, 1) if no row can need it.
    races: whether the scan draws from rows that nothing filters.
    """

    def __init__(self, shaping: Shaping, noise: Noise | None, scores: Tensor, modes: int, races: bool) -> None:
        like = shaping.like
        rows, device = like.rows, like.device
        knobs = _float_knobs(shaping)
        values = {**shaping.knobs, "prompt_lengths": shaping.prompt_lengths}
        int_knobs = {name: of_rows(values[name], rows, device) for name in _knobs.INT_KNOBS}
        flags = _flags(shaping, knobs, int_knobs["no_repeat_ngram_size"], races)

        zeros = {dtype: torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)}
        zero_id = torch.zeros(1, dtype=torch.int64, device=device)
        given: list[tuple[Tensor, int]] = []
        for bit, table, none in (
            (_scores.HAS_HISTORY, shaping.input_ids, zero_id),
            (_scores.HAS_BIAS, shaping.bias, zeros[torch.float32]),
            (_scores.HAS_SUPPRESS, shaping.suppress, zero_id),
            (_scores.HAS_BITMASK, shaping.token_bitmask, zeros[torch.int32]),
        ):
            if table is None or table.numel() == 0:
                given.append((none, 0))
            else:
                modes |= bit.value
                given.append((table, table.stride(0) if table.dim() == 2 else 0))
        (history, history_stride), (bias, bias_stride), (suppress, suppress_stride), (bitmask, bitmask_stride) = given

        seeds, steps = torch.zeros(rows, dtype=torch.int64, device=device), zero_id
        given_noise, noise_stride = zeros[torch.float32], 0
        if noise is not None:
            seeds = noise.seeds
            if noise.steps is not None:
                steps, modes = noise.steps, modes | _row.STEPS_ARE_GIVEN.value
            if noise.given is not None:
                given_noise, noise_stride = noise.given, noise.given.stride(0)
                modes |= _row.NOISE_IS_GIVEN.value
        if shaping.history_steps is not None:
            # Those of a state, by which the noise goes as well.
            steps, modes = shaping.history_steps, modes | _row.HISTORY_GROWS.value

        counted = may_act(shaping.knobs["presence_penalty"], 0) or may_act(shaping.knobs["frequency_penalty"], 0)
        workspace, strides = row_workspaces(rows, like.vocab_size, device, scores, counted)
        self._tables = RowTables(
            torch.stack(list(knobs.values()), dim=1),
            torch.stack([*(knob.clamp(max=_LARGEST_INT32) for knob in int_knobs.values()), flags], dim=1).int(),
            history, bias, suppress, bitmask, given_noise, seeds, steps,
        )  # fmt: skip
        self._workspace = workspace
        self._vocab_size, self._history_stride = like.vocab_size, history_stride
        self._strides = (
            bias_stride, suppress_stride, 0 if shaping.suppress is None else shaping.suppress.shape[-1],
            bitmask_stride, modes, noise_stride,
        )  # fmt: skip
        self._workspace_strides = (*strides, scores.stride(0) if scores.shape[0] == rows else 0)

    def of_call(self, logits: Tensor, step: int, length: int) -> tuple[Any, ...]:
        """In the order of the kernels' parameters."""
        step = step - 2**32 if step >= 2**31 else step
        return (
            logits, self._tables, self._workspace, logits.stride(0), self._vocab_size, self._history_stride, length,
            *self._strides, step, *self._workspace_strides,
        )  # fmt: skip

    def for_filters(self) -> tuple[Any, ...]:
        """In the order of the parameters of `filter_rows_kernel`."""
        return (*self._tables[:2], self._workspace, self._vocab_size, *self._workspace_strides)


def row_workspaces(
    rows: int, vocab_size: int, device: torch.device, scores: Tensor | None, counted: bool
) -> tuple[Workspace, tuple[int, int]]:
    """Workspace for rows, and its two strides. scores: None where a kernel stores none."""
    strides = (_workspace.f32_words(vocab_size), _workspace.i32_words(vocab_size, counted))
    f32 = torch.empty(rows * strides[0], dtype=torch.float32, device=device)
    i32 = torch.empty(rows * strides[1], dtype=torch.int32, device=device)
    marks = torch.zeros(rows, dtype=torch.int32, device=device)
    return Workspace(f32, i32, f32 if scores is None else scores, marks), strides


def _float_knobs(shaping: Shaping) -> dict[str, Tensor]:
    """(rows,) float32 each; top_k is at least min_tokens_to_keep, and 0 where it is the whole vocabulary."""
    like = shaping.like
    knobs = {name: of_rows(shaping.knobs[name], like.rows, like.device) for name in _knobs.FLOAT_KNOBS}
    top_k = knobs["top_k"].clamp(max=like.vocab_size)
    top_k = torch.where(
        top_k > 0, top_k.maximum(of_rows(shaping.knobs["min_tokens_to_keep"], like.rows, like.device)), 0
    )
    knobs["top_k"] = torch.where(top_k < like.vocab_size, top_k, 0)
    return {name: knob.to(torch.float32) for name, knob in knobs.items()}


def _flags(shaping: Shaping, knobs: dict[str, Tensor], ngram_sizes: Tensor, races: bool) -> Tensor:
    """(rows,) int64: what acts on a row, as the kernels read it."""
    drawn = knobs["temperature"] > 0
    flags = torch.zeros_like(ngram_sizes)
    for bit, (name, neutral) in enumerate(_knobs.NEUTRAL_FILTERS.items()):
        acts = knobs[name] < 1 if neutral == 1 else knobs[name] > 0
        flags += (acts & drawn) * (1 << bit)
    first = flags & -flags
    counted = (knobs["presence_penalty"] != 0) | (knobs["frequency_penalty"] != 0)
    penalized = (knobs["repetition_penalty"] != 1) | counted
    marked = penalized | (ngram_sizes > 0)
    if shaping.input_ids is None or shaping.input_ids.numel() == 0:
        penalized, counted, marked = (torch.zeros_like(drawn) for _ in range(3))
    if shaping.suppress is not None and shaping.suppress.numel() > 0:
        marked = torch.ones_like(drawn)
    for bit, holds in (
        (_knobs.RACES, drawn & (flags == 0) & races),
        (_knobs.NUCLEUS, first == _knobs.TOP_P_ACTS.value),
        (_knobs.PENALIZED, penalized),
        (_knobs.COUNTED, counted),
        (_knobs.MARKED, marked),
    ):
        flags += bit.value * holds
    return flags


def of_rows(knob: float | Tensor, rows: int, device: torch.device) -> Tensor:
    """A knob as (rows,), float32 or int64."""
    if isinstance(knob, Tensor):
        return knob
    return torch.full((rows,), knob, dtype=torch.float32 if isinstance(knob, float) else torch.int64, device=device)


def may_act(knob: float | Tensor, neutral: float) -> bool:
    """Whether some row may have another value. Values of tensors may be on a GPU, so nothing looks at them."""
    return isinstance(knob, Tensor) or knob != neutral


def may_filter(shaping: Shaping) -> bool:
    return any(may_act(shaping.knobs[name], neutral) for name, neutral in _knobs.NEUTRAL_FILTERS.items())


def parts_of_rows(rows: int, vocab_size: int, device: torch.device) -> tuple[int, int]:
    """How many programs share a row of the scan, and how many tokens each of them takes."""
    programs = _PROGRAMS_WITHOUT_GPU
    if device.type == "cuda":
        programs = _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    tiles = -(-vocab_size // _scan.SCAN_TILE.value)
    parts = max(1, min(tiles, _workspace.MAX_PARTS.value, -(-programs // max(rows, 1))))
    tiles_of_part = -(-tiles // parts)
    return -(-tiles // tiles_of_part), tiles_of_part * _scan.SCAN_TILE.value


def is_aligned(logits: Tensor) -> bool:
    """Whether every row starts where vectors may be loaded."""
    return logits.stride(0) % 8 == 0 and logits.data_ptr() % 16 == 0
