"""The arguments of the ops as torch's schemas take them: a tensor or a number each, under one name.

A schema has no union of a number and a tensor, no objects, and at most 64 arguments. So numbers go by their names, and
all tensors with a value per row go in one list, `row_values`, with their names in `per_row`: "temperature,seed". The
fields of a state are arguments. `flat` and `unflat` are the two directions; declarations derive from the same tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pygen.knobs import KNOBS, Knob
from pygen.ops._beam_state import BeamState
from pygen.ops._state import DecodeState

State = TypeVar("State", BeamState, DecodeState)


class PerRow(NamedTuple):
    """An argument that is a number or has one per row: its declaration, and the dtype of a list as a tensor."""

    type: str
    default: object
    dtype: torch.dtype


def _of_knob(knob: Knob) -> PerRow:
    kind, dtype = ("SymInt", torch.int64) if knob.type is int else ("float", torch.float64)
    return PerRow(f"{kind}?", None, dtype) if knob.is_optional else PerRow(kind, knob.neutral, dtype)


_COUNT = PerRow("SymInt?", None, torch.int64)
_INDEX = PerRow("SymInt", 0, torch.int64)
KNOB_NAMES = tuple(knob.name for knob in KNOBS)
PER_ROW: dict[str, PerRow] = {
    **{knob.name: _of_knob(knob) for knob in KNOBS},
    "do_sample": PerRow("bool", True, torch.bool),
    "prompt_lengths": _COUNT,
    "draft_lengths": _COUNT,
    "seed": _COUNT,
    "step": _INDEX,
    "start": _INDEX,
}
# The ops read these fields of a state, and write all other tensors.
_READ_ONLY = {"eos_token_ids", "limit"}
_HOST_ONLY = {"grown"}
_STATE = "state_"
_FIELDS = {
    kind: tuple(field.name for field in dataclasses.fields(kind) if field.name not in _HOST_ONLY)
    for kind in (BeamState, DecodeState)
}


def per_row(*names: str) -> str:
    """Declares arguments of the table, and the list for those with a value per row."""
    numbers = [f"{PER_ROW[name].type} {name}={PER_ROW[name].default}" for name in names]
    return ", ".join([*numbers, "str per_row=''", "Tensor[]? row_values=None"])


def state_fields(kind: type[State], *, writes: bool = True) -> str:
    """Declares the fields of a state; tensors that the op writes as such."""
    return ", ".join(_declared(field, writes) for field in dataclasses.fields(kind) if field.name in _FIELDS[kind])


def _declared(field: dataclasses.Field[Any], writes: bool) -> str:
    kind, _, none = str(field.type).partition(" | ")
    if kind == "Tensor":
        written = writes and field.name not in _READ_ONLY
        kind = f"Tensor(state_{field.name}!)" if written else kind
    else:
        kind = "SymInt"
    # `history` is None where it is `token_ids`: two arguments must not share memory.
    optional = "? {}=None" if none or field.name == "history" else " {}"
    return kind + optional.format(_STATE + field.name)


def flat(arguments: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
    """Returns the arguments of a schema for those of a public function. Defaults may be missing in both."""
    given: dict[str, Any] = {}
    rows: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, (BeamState, DecodeState)):
            given.update(flat_state(value))
        elif isinstance(value, (list, tuple)):
            words = [signed_seed(word) for word in value] if name == "seed" else value
            dtype = PER_ROW[name].dtype if name in PER_ROW else torch.int64
            (rows if name in PER_ROW else given)[name] = torch.tensor(words, dtype=dtype, device=logits.device)
        elif isinstance(value, Tensor) and name in PER_ROW:
            rows[name] = value if value.dim() else value.expand(logits.shape[0])
        elif value is not None:
            given[name] = signed_seed(value) if name == "seed" else value
    if rows:
        given.update(per_row=",".join(rows), row_values=list(rows.values()))
    return given


def signed_seed(seed: int) -> int:
    """Returns the int64 with the bits of a seed in [0, 2**64)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be in [0, 2**64), got {seed}")
    return seed if seed < 2**63 else seed - 2**64


def flat_state(state: BeamState | DecodeState) -> dict[str, Any]:
    """Returns the fields of a state that are not None as arguments of a schema."""
    values = {_STATE + name: getattr(state, name) for name in _FIELDS[type(state)]}
    if state.history is state.token_ids:
        del values["state_history"]
    return {name: value for name, value in values.items() if value is not None}


def unflat(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a public function for those of a schema without a state."""
    names, rows = arguments.pop("per_row", ""), arguments.pop("row_values", None) or []
    if "seed" in arguments:
        arguments["seed"] %= 2**64
    if not names and not rows:
        return arguments
    for name, value in zip(names.split(","), rows, strict=True):
        if name not in PER_ROW or name in arguments:
            raise ValueError(f"`per_row` must name arguments without another value, got {name!r}")
        arguments[name] = value
    return arguments


def taken_state(kind: type[State], arguments: dict[str, Any]) -> State:
    """Removes the fields of a state from the arguments of a schema, and returns the state."""
    names = [name for name in arguments if name.startswith(_STATE)]
    fields = {name.removeprefix(_STATE): arguments.pop(name) for name in names}
    fields.setdefault("eos_token_ids", None)
    return kind(**{"history": fields["token_ids"], **fields})
