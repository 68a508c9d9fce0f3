"""Prompts of one length while they are read, in one piece or several, before their rows begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pygen.batch.forward import BatchForward
from pygen.batch.prefix_store import PrefixStore
from pygen.batch.request import Request
from pygen.batch.window_cache import WindowCache, copy_of_row


class Reading:
    """Reads prompts of one length side by side; one whose beginning is stored comes alone.

    cache: with a row for each prompt. logits: (prompts, vocab_size), after the whole prompts; None before.
    """

    def __init__(self, requests: Sequence[Request], forward: BatchForward, prefixes: PrefixStore) -> None:
        self.requests = [*requests]
        self.logits: Tensor | None = None
        self._forward, self._prefixes = forward, prefixes
        self._ids = torch.tensor([request.prompt_ids for request in requests], device=forward.device)
        rows, length = self._ids.shape
        source, self.shared = prefixes.longest(requests[0].prompt_ids) if rows == 1 else (None, 0)
        if source is None:
            self.cache = WindowCache(forward.kinds, rows=rows, capacity=length)
        else:
            self.cache = copy_of_row(source, 0, self.shared, capacity=length)

    def read(self, piece: int | None) -> int:
        """Reads at most `piece` more positions of each prompt, or all, and returns how many it read in all."""
        rows, length = self._ids.shape
        first = self.cache.end
        last = length if piece is None else min(first + piece, length)
        logits = self._forward.read(self.cache, self._ids[:, first:last], [first] * rows, is_prompt=True)
        if last == length:
            self.logits = logits
            self._store()
        return (last - first) * rows

    def _store(self) -> None:
        # They are of one length. An invalid key or value changes also what positions before it hold, through the mask.
        if not self._prefixes.takes(self.requests[0].prompt_ids) or not self.cache.is_finite():
            return
        alone, end = len(self.requests) == 1, self.cache.end
        for row, request in enumerate(self.requests):
            cache = self.cache if alone else copy_of_row(self.cache, row, end, capacity=end)
            self._prefixes.add(request.prompt_ids, cache)


def next_group(waiting: Sequence[Request], prefixes: PrefixStore, limit: int) -> list[Request]:
    """The first waiting prompt with others of its length, at most `limit`; alone where its beginning is stored.

    A prompt that begins like one of the group waits until that one is stored.
    """
    first = waiting[0]
    if prefixes.longest(first.prompt_ids)[1] > 0:
        return [first]
    group = [first]
    for request in waiting:
        if len(group) == limit:
            break
        ids = request.prompt_ids
        if request is first or len(ids) != len(first.prompt_ids):
            continue
        if not any(prefixes.shares(other.prompt_ids, ids) for other in group):
            group.append(request)
    return group
