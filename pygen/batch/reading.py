"""A prompt while it is read, in one piece or several, before its rows begin."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.batch.forward import BatchForward
from pygen.batch.prefix_store import PrefixStore
from pygen.batch.request import Request
from pygen.batch.window_cache import WindowCache, copy_of_prefix


class Reading:
    """Reads the prompt of `request` into a cache of one row.

    logits: (1, vocab_size), after the whole prompt; None before. started: returned sequences that have a row.
    """

    def __init__(self, request: Request, forward: BatchForward, prefixes: PrefixStore) -> None:
        self.request = request
        self.logits: Tensor | None = None
        self.started = 0
        self._forward, self._prefixes = forward, prefixes
        self._ids = torch.tensor([request.prompt_ids], device=forward.device)
        length = len(request.prompt_ids)
        source, shared = prefixes.longest(request.prompt_ids)
        if source is None:
            self.cache = WindowCache(forward.kinds, rows=1, capacity=length)
        else:
            self.cache = copy_of_prefix(forward.kinds, source, shared, length)
        self.shared = shared

    def read(self, piece: int | None) -> int:
        """Reads at most `piece` more positions, or all, and returns how many it read."""
        length = self._ids.shape[1]
        first = self.cache.end
        last = length if piece is None else min(first + piece, length)
        logits = self._forward.read(self.cache, self._ids[:, first:last], [first], is_prompt=True)
        if last == length:
            self.logits = logits
            self._prefixes.add(self.request.prompt_ids, self.cache)
        return last - first
