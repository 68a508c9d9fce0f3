"""Rows that leave a batch before the others: what of a model's inputs and cache goes with them, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pygen.models.rows import leaves

# Inputs whose first dimension counts the rows. Others, `head_mask` for example, may have the same size by chance.
_BY_ROWS = (
    "attention_mask",
    "decoder_attention_mask",
    "position_ids",
    "decoder_position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "inputs_embeds",
    "decoder_inputs_embeds",
    "encoder_outputs",
)
# Layers that store keys and values only, with the rows first, and have no fixed number of rows.
_LAYERS = {
    "pygen.models.growing_layer": ("GrowingLayer",),
    "transformers.cache_utils": ("DynamicLayer", "DynamicSlidingWindowLayer"),
}


def fixed_input(kwargs: Mapping[str, Any], rows: int) -> str | None:
    """The name of an input from which `select_inputs` cannot take rows, or None."""
    for name, value in kwargs.items():
        if name in _BY_ROWS and isinstance(value, (Tensor, Mapping)):
            selectable = _are_by_rows(value, rows)
        else:
            selectable = not any(tensor.ndim for tensor in leaves(value))
        if not selectable:
            return name
    return None


def select_inputs(kwargs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """A copy of `kwargs`, of whose inputs row r is the previous row `rows[r]`. It requires that no input is fixed."""
    selected = dict(kwargs)
    for name in _BY_ROWS:
        value = kwargs.get(name)
        if isinstance(value, Tensor):
            selected[name] = _selected(value, rows)
        elif isinstance(value, Mapping):
            # As for copies of rows, records inside the outputs of an encoder stay as they are.
            kept = {key: _selected(item, rows) if isinstance(item, Tensor) else item for key, item in value.items()}
            selected[name] = type(value)(**kept)
    return selected


def can_leave(cache: Any) -> bool:
    """Whether rows can leave a cache of transformers: it grows, and stores keys and values only."""
    return all(_grows(part) for part in _parts(cache))


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Row r of `cache` becomes its previous row `rows[r]`; it requires `can_leave`."""
    for layer in _layers(cache):
        if isinstance(layer.keys, Tensor):
            layer.batch_select_indices(rows.to(layer.keys.device))


class Departed:
    """The keys and values of rows that have left a cache, for a caller who gets the cache with all rows.

    A row comes back with the positions that it had when it left. Zeros fill the later ones, where it has only padding.

    rows: of the cache before any of them left.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._present = torch.arange(rows, device="cpu")
        self._left: list[tuple[Tensor, list[_States | None]]] = []

    def take(self, cache: Any, kept: Tensor) -> None:
        """Copies the states of all present rows but `kept`, before these rows leave."""
        kept = kept.cpu()
        leaving = torch.ones(len(self._present), dtype=torch.bool, device="cpu")
        leaving[kept] = False
        rows = leaving.nonzero()[:, 0]
        self._left.append((self._present[rows], [_States.of(layer, rows) for layer in _layers(cache)]))
        self._present = self._present[kept]

    def put_back(self, cache: Any) -> None:
        """Gives `cache` all rows again, in their first order."""
        for number, layer in enumerate(_layers(cache)):
            present = _States.of(layer, None)
            if present is None:
                continue
            parts = [(rows, states[number]) for rows, states in self._left]
            for name in ("keys", "values"):
                now = getattr(present, name)
                whole = now.new_zeros((self._rows, *now.shape[1:]))
                whole[self._present.to(now.device)] = now
                for rows, states in parts:
                    if states is not None:
                        states.write(name, whole, rows, present)
                setattr(layer, name, whole)


class _States:
    """The keys and values of some rows of a layer. seen: the number of positions that the layer had seen."""

    def __init__(self, keys: Tensor, values: Tensor, seen: int) -> None:
        self.keys, self.values, self.seen = keys, values, seen

    @classmethod
    def of(cls, layer: Any, rows: Tensor | None) -> _States | None:
        """None for a layer that stores nothing."""
        if not isinstance(layer.keys, Tensor) or not layer.keys.numel():
            return None
        keys, values = layer.keys, layer.values
        if rows is not None:
            keys, values = _selected(keys, rows), _selected(values, rows)
        return cls(keys, values, int(layer.get_seq_length()))

    def write(self, name: str, whole: Tensor, rows: Tensor, now: _States) -> None:
        """Writes the positions that the layer still stores, which has the states `now`, to `rows` of `whole`."""
        states = getattr(self, name)
        # A window has dropped the oldest positions since then, and a cut the newest.
        first, first_now = self.seen - states.shape[2], now.seen - whole.shape[2]
        start, end = max(first, first_now), min(self.seen, now.seen)
        if start < end:
            whole[rows.to(whole.device), :, start - first_now : end - first_now] = states[
                :, :, start - first : end - first
            ]


def _grows(cache: Any) -> bool:
    kind = type(cache)
    return (
        (kind.__module__, kind.__name__) == ("transformers.cache_utils", "DynamicCache")
        and not cache.offloading
        and all(type(layer).__name__ in _LAYERS.get(type(layer).__module__, ()) for layer in cache.layers)
        and not any(tensor.ndim for name, value in vars(cache).items() if name != "layers" for tensor in leaves(value))
    )


def _parts(cache: Any) -> tuple[Any, ...]:
    """The decoder's cache and that of the cross-attention, or the cache itself."""
    if hasattr(cache, "self_attention_cache"):
        return cache.self_attention_cache, cache.cross_attention_cache
    return (cache,)


def _layers(cache: Any) -> Iterator[Any]:
    for part in _parts(cache):
        yield from part.layers


def _are_by_rows(value: object, rows: int) -> bool:
    items = value.values() if isinstance(value, Mapping) else (value,)
    return all(item.ndim > 0 and item.shape[0] == rows for item in items if isinstance(item, Tensor))


def _selected(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))
