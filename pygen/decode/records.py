"""Records of forwards, cut to what a search keeps of them."""

from __future__ import annotations

from typing import Any


def keep_records(records: dict[str, list[Any]], count: int, kept: int) -> None:
    """Replaces the entry of the last forward, over `count` columns, by one for each of its first `kept` ones."""
    if count == 0:
        return
    for name, entries in records.items():
        whole = entries.pop()
        of_text = name in ("attentions", "decoder_attentions")
        entries += [_column(whole, i, count - 1 - i if of_text else 0) for i in range(kept)]


def _column(layers: Any, i: int, hidden: int) -> Any:
    """Query i of every layer (..., queries, width), without the last `hidden` of what it could not see."""
    if layers is None:
        return None
    return tuple(layer if layer is None else layer[..., i : i + 1, : layer.shape[-1] - hidden] for layer in layers)
