"""Removes tokens from a cache that cannot be cropped, through copies of its states."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from pygen.models.cache_snapshot import Snapshot, rounding

# More unread tokens than this get a separate forward.
_MAX_UNREAD = 16

# (token_ids (rows, length), number of unread columns, count) -> logits (rows, count, vocab_size) of the last columns
Read = Callable[[Tensor, int, int], Tensor]

# By model, and then by (type of device, whether there are several rows).
_known: weakref.WeakKeyDictionary[object, dict[tuple[str, bool], bool]] = weakref.WeakKeyDictionary()


class Rollback:
    """Removes the last tokens in two steps: it restores an earlier copy of the states, and the next forward reads the
    remaining tokens after the copy again::

        hold()                   declares all tokens so far final
        decode(x a b c)          copies the states, reads x a b c
        take_back(2)             restores the states; x a are unread
        decode(y d e)            reads x a y d e

    More than 16 unread tokens get a separate forward first. A model that reads one token at a time reads all of them
    one by one.

    unread: the number of tokens that the text has and the cache has not seen.
    """

    def __init__(self, cache: object, read: Read, *, reads_at_once: bool) -> None:
        self._cache = cache
        self._read = read
        self._reads_at_once = reads_at_once
        self._holds = False
        self._snapshot: Snapshot | None = None
        self._since = 0  # tokens read since the snapshot
        self._token_ids: Tensor | None = None
        self.unread = 0

    def hold(self) -> None:
        """Declares all tokens so far final."""
        self._holds = True
        if self._since:
            self._snapshot, self._since = None, 0

    def decode(self, token_ids: Tensor, count: int) -> Tensor:
        """The logits (rows, count, vocab_size) of the last `count` columns, which are new."""
        end = token_ids.shape[1] - count
        if self.unread > (_MAX_UNREAD if self._reads_at_once else 0):
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
        """Removes the last tokens; returns False, and changes nothing, if some of them are final."""
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
        """Reads all unread tokens."""
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


def reads_at_once(model: object, cache: object, read: Read, token_ids: Tensor, logits: Tensor, capacity: int) -> bool:
    """Whether a forward over several tokens continues from the states of `model`, as a forward over one token does.

    In such a forward many models start from empty states or ignore a part of them, and some fail. So the function tries
    it once per model and kind of batch: two tokens together and then one, against three single tokens. The logits must
    agree up to rounding. The cache is unchanged afterwards.

    cache: None if every forward reads the whole text.
    token_ids: (rows, length), the prompts.
    logits: (rows, vocab_size), after the prompts.
    capacity: the number of tokens for which the cache has positions left.
    """
    known, key = _known.setdefault(model, {}), (logits.device.type, token_ids.shape[0] > 1)
    if key not in known:
        if capacity < 2:
            return True
        more = logits.argmax(-1, keepdim=True).to(token_ids).expand(-1, min(capacity, 3))
        known[key] = _agree(cache, read, torch.cat([token_ids, more], dim=1), more.shape[1])
    return known[key]


def _agree(cache: object, read: Read, token_ids: Tensor, count: int) -> bool:
    expected = _tried(cache, read, token_ids, pieces=[1] * count)
    try:
        found = _tried(cache, read, token_ids, pieces=[2] + [1] * (count - 2))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    eps = torch.finfo(torch.float32).eps if cache is None else rounding(cache)
    return bool((found - expected).norm() <= eps**0.5 * expected.norm())


def _tried(cache: object, read: Read, token_ids: Tensor, pieces: list[int]) -> Tensor:
    """The logits (rows, sum(pieces), vocab_size) of the last columns, read in pieces; the cache is unchanged then."""
    snapshot, unread, parts = None if cache is None else Snapshot(cache), sum(pieces), []
    try:
        for piece in pieces:
            unread -= piece
            parts.append(read(token_ids[:, : token_ids.shape[1] - unread], piece, piece))
    finally:
        if snapshot is not None:
            snapshot.restore()
    return torch.cat(parts, dim=1).double()
