"""How stop strings are searched for: few short ones by tables, others on the host; what was worked out last is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pygen.stopping.suffixes import StopSuffixes
from pygen.stopping.tables import StopTables, stop_tables
from pygen.stopping.token_bytes import TokenBytes

# Tables grow with the bytes of all strings times the tokens in which these differ.
_BYTES_FOR_TABLES = 256
_BYTES_KEPT = 2**26

StopSearch = StopTables | StopSuffixes

_Key = tuple[TokenBytes, tuple[str, ...]]
_kept: OrderedDict[_Key, StopSearch] = OrderedDict()
_lock = threading.Lock()


def stop_search(vocabulary: TokenBytes, strings: tuple[str, ...]) -> StopSearch:
    """What tells of rows of tokens whether one of `strings` ends in the last one: `ended(input_ids)`.

    ValueError where no token can end any of them, and for text that is no UTF-8.
    """
    key = (vocabulary, strings)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    encoded = [_encoded(string) for string in strings]
    few = sum(map(len, encoded)) <= _BYTES_FOR_TABLES
    try:
        search = stop_tables(vocabulary, encoded) if few else StopSuffixes(vocabulary, encoded)
    except ValueError as error:
        raise ValueError(f"`stop_strings`: {error} {list(strings)!r:.80}") from None
    with _lock:
        _kept[key] = search
        while len(_kept) > 1 and sum(each.num_bytes for each in _kept.values()) > _BYTES_KEPT:
            _kept.popitem(last=False)
    return search


def _encoded(string: str) -> bytes:
    try:
        return string.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`stop_strings` must hold text without lone surrogates, got {string!a:.80}") from None
