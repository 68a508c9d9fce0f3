"""The shaping knobs that `sample` and `process_logits` share, checked once and converted to the form of backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.knobs import BY_NAME, KNOBS, WARPERS, BoolKnob, IntKnob, Knob, ShapingKnobs, Stage
from pygen.ops import _checks as checks
from pygen.ops import _numbers as numbers
from pygen.ops._beam_state import BeamState
from pygen.ops._beam_state_checks import check_beam_state
from pygen.ops._checks import Like
from pygen.ops._state_checks import check_state
from pygen.rules import integer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pygen.ops._state import DecodeState

TokenIds = Sequence[int] | Tensor

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True)
class Shaping:
    """Checked knobs and tables, on the device of the logits.

    knobs: every knob of the table: a float32 value or (rows,) float32, an int or (rows,) int64. Temperature 0 makes a
        row greedy, whatever `do_sample` is; a filter that is off has its neutral value.
    """

    like: Like
    dtype: torch.dtype
    knobs: Mapping[str, float | Tensor]
    prompt_lengths: int | Tensor
    input_ids: Tensor | None
    bias: Tensor | None
    suppress: Tensor | None
    token_bitmask: Tensor | None
    history_steps: Tensor | None = None  # (rows,) int64: columns that row r uses in addition to the call's `length`
    widened: tuple[tuple[Tensor, Tensor], ...] = ()  # tables above, each with the caller's int32 table to copy from

    @property
    def history_length(self) -> int:
        """The number of columns of `input_ids`."""
        return 0 if self.input_ids is None else self.input_ids.shape[1]

    def kernel_arguments(self, threads: int) -> dict[str, float]:
        """Returns keyword arguments for the plans of pygen._C. The tensors must outlive the plan."""
        arguments: dict[str, float] = {
            "rows": self.like.rows,
            "vocab_size": self.like.vocab_size,
            "dtype": DTYPE_CODES[self.dtype],
            "threads": threads,
        }
        for name, value in (*self.knobs.items(), ("prompt_lengths", self.prompt_lengths)):
            arguments[name] = 0 if isinstance(value, Tensor) else value
            arguments[f"{name}_ptr"] = value.data_ptr() if isinstance(value, Tensor) else 0
        tables = {
            "input_ids": self.input_ids,
            "bias": self.bias,
            "suppress": self.suppress,
            "token_bitmask": self.token_bitmask,
        }
        for name, table in tables.items():
            if table is not None and table.numel() == 0:
                table = None
            arguments[f"{name}_ptr"] = 0 if table is None else table.data_ptr()
            arguments[f"{name}_stride"] = 0 if table is None or table.dim() == 1 else table.stride(0)
        arguments["input_ids_length"] = self.history_length
        arguments["history_steps_ptr"] = 0 if self.history_steps is None else self.history_steps.data_ptr()
        arguments["suppress_count"] = 0 if self.suppress is None else self.suppress.shape[-1]
        return arguments

    def reference_arguments(self, length: int) -> dict[str, Any]:
        """Returns keyword arguments for the reference, for the first `length` columns of `input_ids`."""
        tables = ("prompt_lengths", "bias", "suppress", "token_bitmask")
        arguments = {**self.knobs, **{name: getattr(self, name) for name in tables}}
        if self.history_steps is not None and self.input_ids is not None:
            return {**arguments, **self._aligned_history(self.input_ids, length + self.history_steps)}
        return {**arguments, "input_ids": None if self.input_ids is None else self.input_ids[:, :length]}

    def unfiltered(self) -> Shaping:
        """Returns the same without temperature and filters, which do not affect greedy rows."""
        return replace(self, knobs={**self.knobs, **{knob.name: knob.neutral for knob in WARPERS}})

    def _aligned_history(self, input_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Right-aligns histories of different lengths; ids outside every vocabulary fill the left."""
        width = int(lengths.max())
        ahead = width - lengths
        columns = torch.arange(width, device=input_ids.device) - ahead[:, None]
        ids = input_ids.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)
        return {"input_ids": ids, "prompt_lengths": self.prompt_lengths + ahead}


def check_shaping(
    logits: Tensor,
    *,
    do_sample: BoolKnob,
    input_ids: Tensor | None,
    prompt_lengths: IntKnob | None,
    bias: Tensor | None,
    suppress: TokenIds | None,
    token_bitmask: Tensor | None,
    state: DecodeState | BeamState | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> Shaping:
    """Checks every shaping knob against `logits`. The sequences of `state` replace `input_ids`."""
    like = checks.check_logits(logits)
    if state is not None:
        if input_ids is not None:
            raise ValueError("`input_ids` must be None where `state` gives the sequences, got a tensor")
        if isinstance(state, BeamState):
            check_beam_state(state, like)
        else:
            check_state(state, like)
        input_ids = state.history
        prompt_lengths = state.prompt_length if prompt_lengths is None else prompt_lengths
    elif input_ids is not None:
        _check_input_ids(input_ids, like)
    widened: list[tuple[Tensor, Tensor]] = []

    shaping = Shaping(
        like=like,
        dtype=logits.dtype,
        knobs=_check_knobs(numbers.bool_knob("do_sample", do_sample, like), dict(knobs), like),
        prompt_lengths=0 if prompt_lengths is None else _check_prompt_lengths(prompt_lengths, like),
        input_ids=None if input_ids is None else _as_int64(input_ids, widened),
        bias=None
        if bias is None
        else checks.row_table("bias", bias, torch.float32, "vocab_size", like.vocab_size, like),
        suppress=None if suppress is None else _as_int64(checks.id_table("suppress", suppress, like), widened),
        token_bitmask=None if token_bitmask is None else _check_bitmask(token_bitmask, like),
        history_steps=None if state is None else state.steps,
        widened=tuple(widened),
    )
    _require_history(shaping)
    return shaping


def _check_knobs(do_sample: bool | Tensor, given: Mapping[str, object], like: Like) -> dict[str, float | Tensor]:
    """Returns every knob of the table: checked if given, else neutral."""
    for name in given:
        if name not in BY_NAME:
            raise TypeError(f"unexpected keyword argument {name!r}; the knobs are {', '.join(BY_NAME)}")
    knobs = {knob.name: _check_knob(knob, given.get(knob.name, knob.neutral), like) for knob in KNOBS}
    return {**knobs, "temperature": greedy_is_zero(do_sample, knobs["temperature"], like)}


def _check_knob(knob: Knob, value: object, like: Like) -> float | Tensor:
    if value is knob.neutral or (value is None and knob.is_optional):
        return knob.neutral
    rule = knob.row_rule if knob.row_rule is not None and isinstance(value, Tensor) else knob.rule
    if knob.stage is Stage.TEMPERATURE:
        return numbers.temperature_knob(value, rule, like)
    check = numbers.int_knob if knob.type is int else numbers.float_knob
    return check(knob.name, value, rule, like)


def _check_prompt_lengths(prompt_lengths: IntKnob, like: Like) -> int | Tensor:
    return numbers.int_knob("prompt_lengths", prompt_lengths, integer(0), like)


def _as_int64(ids: Tensor, widened: list[tuple[Tensor, Tensor]]) -> Tensor:
    if ids.dtype is torch.int64:
        return ids
    table = ids.long()
    widened.append((table, ids))
    return table


def greedy_is_zero(do_sample: bool | Tensor, temperature: float | Tensor, like: Like) -> float | Tensor:
    if isinstance(do_sample, Tensor):
        if not isinstance(temperature, Tensor):
            temperature = torch.full((like.rows,), temperature, dtype=torch.float32, device=like.device)
        return temperature.masked_fill(~do_sample, 0.0)
    return temperature if do_sample else 0.0


def _check_input_ids(input_ids: Tensor, like: Like) -> None:
    checks.check_ids("input_ids", input_ids)
    if input_ids.dim() != 2 or input_ids.shape[0] != like.rows:
        shape = tuple(input_ids.shape)
        raise ValueError(f"`input_ids` must have shape (rows, length) with {like.rows} rows, got {shape}")
    checks.check_device("input_ids", input_ids, like.device)
    checks.check_last_stride("input_ids", input_ids)


def _check_bitmask(token_bitmask: Tensor, like: Like) -> Tensor:
    words = (like.vocab_size + 31) // 32
    return checks.row_table("token_bitmask", token_bitmask, torch.int32, "ceil(vocab_size / 32)", words, like)


def _require_history(shaping: Shaping) -> None:
    if shaping.input_ids is not None:
        return
    for knob in KNOBS:
        value = shaping.knobs[knob.name]
        if isinstance(value, Tensor) and checks.is_captured(value.device):
            continue
        if knob.reads_history and bool(
            (value != knob.neutral).any() if isinstance(value, Tensor) else value != knob.neutral
        ):
            raise ValueError(f"`input_ids` must be given where `{knob.name}` acts, got None")
