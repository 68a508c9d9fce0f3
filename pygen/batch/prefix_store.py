"""The keys and values of prompts that were read, for later prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from pygen.batch.window_cache import WindowCache

# A shorter common beginning costs more to copy and look after than to read.
_SHORTEST = 16


class PrefixStore:
    """The prompts read last, up to `max_positions` in all; the one that was used least recently goes first."""

    def __init__(self, max_positions: int) -> None:
        self._max_positions = max_positions
        self._entries: list[tuple[tuple[int, ...], WindowCache]] = []

    def longest(self, prompt_ids: Sequence[int]) -> tuple[WindowCache | None, int]:
        """The cache of the prompt with the longest common beginning, and its length; (None, 0) without one.

        At least one id of `prompt_ids` is left to read, since its logits are not stored.
        """
        best, best_length = -1, _SHORTEST - 1
        for number, (ids, _) in enumerate(self._entries):
            length = _common(ids, prompt_ids, best_length)
            if length > best_length:
                best, best_length = number, length
        if best < 0:
            return None, 0
        self._entries.append(self._entries.pop(best))
        return self._entries[-1][1], best_length

    def shares(self, prompt_ids: Sequence[int], other: Sequence[int]) -> bool:
        """Whether `other` would read less once `prompt_ids` are kept."""
        return self.takes(prompt_ids) and _common(tuple(prompt_ids), other, _SHORTEST - 1) > 0

    def takes(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt is of a length that is kept."""
        return _SHORTEST < len(prompt_ids) <= self._max_positions

    def add(self, prompt_ids: Sequence[int], cache: WindowCache) -> None:
        """Keeps the cache of one row that has read `prompt_ids`, instead of those of its beginnings."""
        ids = tuple(prompt_ids)
        self._entries = [entry for entry in self._entries if entry[0] != ids[: len(entry[0])]]
        self._entries.append((ids, cache))
        positions = sum(len(kept) for kept, _ in self._entries)
        while positions > self._max_positions:
            positions -= len(self._entries.pop(0)[0])


def _common(ids: tuple[int, ...], prompt_ids: Sequence[int], at_least: int) -> int:
    """The length of the common beginning, less than that of `prompt_ids`; 0 where it is at most `at_least`."""
    longest = min(len(ids), len(prompt_ids) - 1)
    if longest <= at_least or ids[at_least] != prompt_ids[at_least]:
        return 0
    return next((n for n in range(longest) if ids[n] != prompt_ids[n]), longest)
