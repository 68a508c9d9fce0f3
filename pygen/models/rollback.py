"""Takes tokens back from a cache that cannot be cropped, by copies of the states it holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pygen.models.cache_snapshot import Snapshot, rounding

# With more unread tokens than this, they get a forward of their own.
_MOST_UNREAD = 16

# (token_ids (rows, length), unread columns, wanted ones) -> logits (rows, wanted, vocab_size) of the last columns
Read = Callable[[Tensor, int, int], Tensor]

_known: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], bool]] = weakref.WeakKeyDictionary()


class Rollback:
    """The last tokens are taken back in two steps: the states that were copied before them are put back, and those
    of the tokens behind the copy that stay are read again, together with what is decoded next::

        hold()                   tokens before this are never taken back
        decode(x a b c)          copies the states, reads x a b c
        take_back(2)             puts the states back; x a are unread
        decode(y d e)            reads x a y d e

    Many unread tokens are read by themselves first. A model that reads one token at a time reads all of them so.

    unread: how many tokens the text has behind those that the cache has seen.
    """

    def __init__(self, cache: Any, read: Read, *, reads_at_once: bool) -> None:
        self._cache = cache
        self._read = read
        self._reads_at_once = reads_at_once
        self._holds = False
        self._snapshot: Snapshot | None = None
        self._since = 0  # tokens read since the snapshot
        self._token_ids: Tensor | None = None
        self.unread = 0

    def hold(self) -> None:
        self._holds = True
        if self._since:
            self._snapshot, self._since = None, 0

    def decode(self, token_ids: Tensor, count: int) -> Tensor:
        """The logits of the last `count` columns (rows, count, vocab_size), which are new."""
        end = token_ids.shape[1] - count
        if self.unread > (_MOST_UNREAD if self._reads_at_once else 0):
            self._catch_up(token_ids[:, :end])
        if self._holds and self._snapshot is None:
            self._snapshot = Snapshot(self._cache)
        self._token_ids = token_ids
        if self._reads_at_once or count == 1:
            logits = self._read(token_ids, self.unread + count, count)
        else:
            logits = torch.cat([self._read(token_ids[:, : end + i + 1], 1, 1) for i in range(count)], dim=1)
        self._since += self.unread + count
        self.unread = 0
        return logits

    def take_back(self, num_tokens: int) -> bool:
        """False where the tokens reach behind those that were held; nothing is changed then."""
        if num_tokens == 0:
            return True
        left = self._since + self.unread - num_tokens
        if self._token_ids is None or left < 0 or (self._since and self._snapshot is None):
            return False
        if self._since:
            assert self._snapshot is not None
            self._snapshot.restore()
        self._token_ids = self._token_ids[:, : self._token_ids.shape[1] - num_tokens]
        self._snapshot, self._since, self.unread = None, 0, left
        return True

    def catch_up(self) -> None:
        """Reads what is unread."""
        if self.unread:
            assert self._token_ids is not None
            self._catch_up(self._token_ids)

    def _catch_up(self, token_ids: Tensor) -> None:
        if self._reads_at_once:
            self._read(token_ids, self.unread, 0)
        else:
            for left in reversed(range(self.unread)):
                self._read(token_ids[:, : token_ids.shape[1] - left], 1, 0)
        self._snapshot, self._since, self.unread = None, 0, 0


def reads_at_once(model: Any, cache: Any, read: Read, token_ids: Tensor, logits: Tensor, room: int) -> bool:
    """Whether `model` goes on from its states when it reads several tokens in one forward, as it does with one.

    Many models begin from empty states then, or leave out a part of them; some fail. So it is tried, once for each
    model and kind of batch: two tokens at once and one more, against three by themselves. The logits have to be the
    same but for rounding. Leaves the cache as it was.

    cache: None where every forward reads the whole text.
    token_ids: (rows, length), the prompts. logits: (rows, vocab_size) after them.
    room: how many more tokens the cache has positions for.
    """
    known, key = _known.setdefault(model, {}), (logits.device.type, token_ids.shape[0] > 1)
    if key not in known:
        if room < 2:
            return True
        more = logits.argmax(-1, keepdim=True).to(token_ids).expand(-1, min(room, 3))
        known[key] = _agree(cache, read, torch.cat([token_ids, more], dim=1), more.shape[1])
    return known[key]


def _agree(cache: Any, read: Read, token_ids: Tensor, count: int) -> bool:
    expected = _tried(cache, read, token_ids, pieces=[1] * count)
    try:
        found = _tried(cache, read, token_ids, pieces=[2] + [1] * (count - 2))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    eps = torch.finfo(torch.float32).eps if cache is None else rounding(cache)
    return bool((found - expected).norm() <= eps**0.5 * expected.norm())


def _tried(cache: Any, read: Read, token_ids: Tensor, pieces: list[int]) -> Tensor:
    """The logits of the last columns, read in pieces; the cache is as before afterwards."""
    snapshot, unread, parts = None if cache is None else Snapshot(cache), sum(pieces), []
    try:
        for piece in pieces:
            unread -= piece
            parts.append(read(token_ids[:, : token_ids.shape[1] - unread], piece, piece))
    finally:
        if snapshot is not None:
            snapshot.restore()
    return torch.cat(parts, dim=1).double()
