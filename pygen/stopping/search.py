"""Chooses the search for stop strings: tables for few short ones, the host for others. A cache keeps the latest."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pygen.stopping.suffixes import StopSuffixes
from pygen.stopping.tables import StopTables, stop_tables
from pygen.stopping.token_bytes import TokenBytes

# The size of the tables is the bytes of all strings times the tokens in which the states differ.
_BYTES_FOR_TABLES = 256
_MAX_CACHE_BYTES = 2**26

StopSearch = StopTables | StopSuffixes

_Key = tuple[TokenBytes, tuple[str, ...]]
_cache: OrderedDict[_Key, StopSearch] = OrderedDict()
_lock = threading.Lock()


def stop_search(vocabulary: TokenBytes, strings: tuple[str, ...]) -> StopSearch:
    """The search whose `ended(input_ids)` says for each row whether one of `strings` ends in its last token.

    ValueError where no token can end any of the strings, and for lone surrogates.
    """
    key = (vocabulary, strings)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    encoded = [_encoded(string) for string in strings]
    few = sum(map(len, encoded)) <= _BYTES_FOR_TABLES
    try:
        search = stop_tables(vocabulary, encoded) if few else StopSuffixes(vocabulary, encoded)
    except ValueError as error:
        raise ValueError(f"`stop_strings`: {error} {list(strings)!r:.80}") from None
    with _lock:
        _cache[key] = search
        while len(_cache) > 1 and sum(each.num_bytes for each in _cache.values()) > _MAX_CACHE_BYTES:
            _cache.popitem(last=False)
    return search


def _encoded(string: str) -> bytes:
    try:
        return string.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`stop_strings` must hold text without lone surrogates, got {string!a:.80}") from None
