"""The shaping knobs, which `sample` and `process_logits` share: checked once, and folded into what backends take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._beam_state import BeamState
from pygen.ops._beam_state_checks import check_beam_state
from pygen.ops._checks import Like
from pygen.ops._state_checks import check_state

if TYPE_CHECKING:
    from pygen.ops._state import DecodeState

FloatKnob = float | Tensor | Sequence[float]
IntKnob = int | Tensor | Sequence[int]
BoolKnob = bool | Tensor | Sequence[bool]
TokenIds = Sequence[int] | Tensor

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_FLOAT_KNOBS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_INT_KNOBS = ("top_k", "no_repeat_ngram_size", "min_tokens_to_keep", "prompt_lengths")


@dataclass(frozen=True)
class Shaping:
    """Checked knobs. Floats are float32 values or (rows,) float32, ints are ints or (rows,) int64; `do_sample` is
    folded into `temperature` (0 is a greedy row) and `top_h=None` is 0. Tensors are on the device of the logits."""

    like: Like
    dtype: torch.dtype
    temperature: float | Tensor
    top_k: int | Tensor
    top_p: float | Tensor
    min_p: float | Tensor
    typical_p: float | Tensor
    epsilon_cutoff: float | Tensor
    eta_cutoff: float | Tensor
    top_h: float | Tensor
    repetition_penalty: float | Tensor
    presence_penalty: float | Tensor
    frequency_penalty: float | Tensor
    no_repeat_ngram_size: int | Tensor
    min_tokens_to_keep: int | Tensor
    prompt_lengths: int | Tensor
    input_ids: Tensor | None
    bias: Tensor | None
    suppress: Tensor | None
    token_bitmask: Tensor | None
    history_steps: Tensor | None = None  # (rows,) int64: row r has read as many columns more than the call says
    widened: tuple[tuple[Tensor, Tensor], ...] = ()  # tables above, and the caller's int32 ones to copy for every call

    @property
    def history_length(self) -> int:
        """Columns of `input_ids`."""
        return 0 if self.input_ids is None else self.input_ids.shape[1]

    def kernel_arguments(self, threads: int) -> dict[str, Any]:
        """Keyword arguments of the plans of pygen._C. The tensors have to outlive the plan."""
        arguments: dict[str, Any] = {
            "rows": self.like.rows,
            "vocab_size": self.like.vocab_size,
            "dtype": DTYPE_CODES[self.dtype],
            "threads": threads,
        }
        for name in (*_FLOAT_KNOBS, *_INT_KNOBS):
            value = getattr(self, name)
            per_row = isinstance(value, Tensor)
            arguments[name] = 0 if per_row else value
            arguments[f"{name}_ptr"] = value.data_ptr() if per_row else 0
        tables = {
            "input_ids": self.input_ids,
            "bias": self.bias,
            "suppress": self.suppress,
            "bitmask": self.token_bitmask,
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
        """Keyword arguments of the reference, for the first `length` columns of `input_ids`."""
        names = (*_FLOAT_KNOBS, *_INT_KNOBS, "bias", "suppress", "token_bitmask")
        arguments = {name: getattr(self, name) for name in names}
        if self.history_steps is not None and self.input_ids is not None:
            return {**arguments, **self._aligned_history(self.input_ids, length + self.history_steps)}
        return {**arguments, "input_ids": None if self.input_ids is None else self.input_ids[:, :length]}

    def _aligned_history(self, input_ids: Tensor, lengths: Tensor) -> dict[str, Any]:
        """Histories of different lengths moved to the right, behind ids that are outside every vocabulary."""
        width = int(lengths.max())
        ahead = width - lengths
        columns = torch.arange(width, device=input_ids.device) - ahead[:, None]
        ids = input_ids.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)
        return {"input_ids": ids, "prompt_lengths": self.prompt_lengths + ahead}


def check_shaping(
    logits: Tensor,
    *,
    do_sample: BoolKnob,
    temperature: FloatKnob,
    top_k: IntKnob,
    top_p: FloatKnob,
    min_p: FloatKnob,
    typical_p: FloatKnob,
    epsilon_cutoff: FloatKnob,
    eta_cutoff: FloatKnob,
    top_h: FloatKnob | None,
    repetition_penalty: FloatKnob,
    presence_penalty: FloatKnob,
    frequency_penalty: FloatKnob,
    no_repeat_ngram_size: IntKnob,
    input_ids: Tensor | None,
    prompt_lengths: IntKnob | None,
    bias: Tensor | None,
    suppress: TokenIds | None,
    token_bitmask: Tensor | None,
    min_tokens_to_keep: IntKnob,
    state: DecodeState | BeamState | None = None,
) -> Shaping:
    """Checks every shaping knob against `logits`; with `state`, its sequences stand for `input_ids`."""
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
        temperature=greedy_is_zero(
            checks.bool_knob("do_sample", do_sample, like),
            checks.temperature_knob(temperature, checks.FINITE_NON_NEGATIVE, like),
            like,
        ),
        top_k=checks.int_knob("top_k", top_k, checks.NON_NEGATIVE, like),
        top_p=checks.float_knob("top_p", top_p, checks.FRACTION, like),
        min_p=checks.float_knob("min_p", min_p, checks.FRACTION, like),
        typical_p=checks.float_knob("typical_p", typical_p, checks.POSITIVE_FRACTION, like),
        epsilon_cutoff=checks.float_knob("epsilon_cutoff", epsilon_cutoff, checks.CUTOFF, like),
        eta_cutoff=checks.float_knob("eta_cutoff", eta_cutoff, checks.CUTOFF, like),
        top_h=_check_top_h(top_h, like),
        repetition_penalty=checks.float_knob("repetition_penalty", repetition_penalty, checks.FINITE_POSITIVE, like),
        presence_penalty=checks.float_knob("presence_penalty", presence_penalty, checks.FINITE, like),
        frequency_penalty=checks.float_knob("frequency_penalty", frequency_penalty, checks.FINITE, like),
        no_repeat_ngram_size=checks.int_knob("no_repeat_ngram_size", no_repeat_ngram_size, checks.NON_NEGATIVE, like),
        min_tokens_to_keep=checks.int_knob("min_tokens_to_keep", min_tokens_to_keep, checks.POSITIVE, like),
        prompt_lengths=0
        if prompt_lengths is None
        else checks.int_knob("prompt_lengths", prompt_lengths, checks.NON_NEGATIVE, like),
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


def _check_top_h(top_h: FloatKnob | None, like: Like) -> float | Tensor:
    if top_h is None:
        return 0.0
    rule = checks.FRACTION if isinstance(top_h, Tensor) else checks.POSITIVE_FRACTION
    return checks.float_knob("top_h", top_h, rule, like)


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
    neutral = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "no_repeat_ngram_size": 0}
    for name, off in neutral.items():
        value = getattr(shaping, name)
        if bool((value != off).any()) if isinstance(value, Tensor) else value != off:
            raise ValueError(f"`input_ids` must be given where `{name}` acts, got None")
