"""The knobs of a captured step: static tables that every call refills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.knobs import BY_NAME, NEUTRAL
from pygen.ops import BeamState, DecodeState
from pygen.ops._shaping import Shaping

# Lists of banned ids are rounded up to whole numbers of these, with ids that mean nothing, so that calls may share a
# capture.
_BANNED_IDS = 32
NO_TOKEN = -1


@dataclass(frozen=True)
class KnobForm:
    """What is fixed of the knobs when a step is captured; calls of equal form share it.

    names: of those that act on some step; a call gives them any values.
    """

    rows: int
    vocab_size: int
    dtype: torch.dtype
    names: tuple[str, ...]
    has_bias: bool
    has_bitmask: bool
    num_banned: int

    @classmethod
    def of(cls, shapings: Sequence[Shaping], draws: bool) -> KnobForm:
        """`shapings`: those of a call, one per segment of its steps. draws: some row is not greedy."""
        first = shapings[0]
        banned = [0 if shaping.suppress is None else shaping.suppress.numel() for shaping in shapings]
        return cls(
            rows=first.like.rows,
            vocab_size=first.like.vocab_size,
            dtype=first.dtype,
            names=tuple(name for name in NEUTRAL if draws or name != "temperature" if _acts(name, shapings)),
            has_bias=any(shaping.bias is not None for shaping in shapings),
            has_bitmask=any(shaping.token_bitmask is not None for shaping in shapings),
            num_banned=rounded_up(max(banned), _BANNED_IDS),
        )

    @property
    def act(self) -> bool:
        return bool(self.names) or self.has_bias or self.has_bitmask or self.num_banned > 0

    def arguments(self, device: torch.device) -> dict[str, Any]:
        """Knobs of an op in new tables, with values that do nothing."""
        return {
            **{name: _per_row(name, self.rows, device) for name in self.names},
            "bias": torch.zeros(self.vocab_size, device=device) if self.has_bias else None,
            "token_bitmask": self._every_token(device) if self.has_bitmask else None,
            "suppress": no_tokens(self.num_banned, device) if self.num_banned else None,
        }

    def _every_token(self, device: torch.device) -> Tensor:
        return torch.full((-(-self.vocab_size // 32),), -1, dtype=torch.int32, device=device)

    def fill(self, own: Shaping, shaping: Shaping) -> None:
        """Makes the steps that are queued from here on, of an op prepared with `arguments`, act as `shaping` says."""
        for name in self.names:
            value, target = shaping.knobs[name], own.knobs[name]
            assert isinstance(target, Tensor)
            target.copy_(value) if isinstance(value, Tensor) else target.fill_(value)
        if own.bias is not None:
            own.bias.zero_() if shaping.bias is None else own.bias.copy_(shaping.bias)
        if own.token_bitmask is not None:
            own.token_bitmask.fill_(-1) if shaping.token_bitmask is None else own.token_bitmask.copy_(
                shaping.token_bitmask
            )
        if own.suppress is not None:
            own.suppress.fill_(NO_TOKEN)
            if shaping.suppress is not None:
                own.suppress[: shaping.suppress.numel()] = shaping.suppress


def rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def no_tokens(count: int, device: torch.device) -> Tensor:
    return torch.full((count,), NO_TOKEN, dtype=torch.int64, device=device)


def generator_words(device: torch.device) -> Tensor:
    """Memory for `DecodeState.generator_state`."""
    if device.type == "cuda":
        return torch.zeros(2, dtype=torch.int64, device=device)
    return torch.default_generator.get_state()


def fill_prompts(own: DecodeState | BeamState, state: DecodeState | BeamState, capacity: int) -> None:
    """Right-aligns the prompts of `state` in the first `capacity` columns of `own`, after ids outside every vocabulary;
    so what a step sees of them does not depend on their length."""
    length = state.prompt_length
    own.token_ids[:, capacity - length : capacity] = state.token_ids[:, :length]
    own.history.fill_(NO_TOKEN)
    own.history[:, capacity - length : capacity] = state.history[:, :length]


def _acts(name: str, shapings: Sequence[Shaping]) -> bool:
    values = [shaping.knobs[name] for shaping in shapings]
    return any(isinstance(value, Tensor) or value != NEUTRAL[name] for value in values)


def _per_row(name: str, rows: int, device: torch.device) -> Tensor:
    knob = BY_NAME[name]
    dtype = torch.int64 if knob.type is int else torch.float32
    return torch.full((rows,), knob.neutral, dtype=dtype, device=device)
