"""The bytes that every token of a vocabulary adds to a text."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pygen.request.protocols import Tokenizer
from pygen.stopping.vocabulary import Vocabulary, read_vocabulary

_GAP = b"\xff"  # separates the tokens where one pass handles all of them: UTF-8 has no such byte
# WordPiece's clean-up replaces these in a token after it has added a space.
_CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " do not": " don't",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}

# The steps of a decoder, as `tokenizers` writes them: {"type": name, parameter: value, ...}.
Steps = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """Token `ids[i]` adds the bytes `data[starts[i] : starts[i] + lengths[i]]`; they may be a part of a character.

    ids, starts, lengths: (n,) int64.
    data: (total,) uint8, one token after another. Bytes of no token are 255, which UTF-8 does not have.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor
    data: Tensor

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return int(self.ids.max()) + 1

    @cached_property
    def is_last(self) -> Tensor:
        """(total,) bool: whether a byte is the last one of a token."""
        is_last = torch.zeros(len(self.data), dtype=torch.bool)
        is_last[(self.starts + self.lengths)[self.lengths > 0] - 1] = True
        return is_last

    @cached_property
    def beginnings(self) -> Tensor:
        """(n,) int32: 256 times the first byte plus the second; 65,536 for a token of one byte, 65,537 for none."""
        last = len(self.data) - 1
        first, second = (self.data[(self.starts + offset).clamp(max=last)].int() for offset in (0, 1))
        pairs = 256 * first + second
        return torch.where(self.lengths > 1, pairs, 2**16 + (self.lengths == 0).int())

    def token_at(self, positions: Tensor) -> Tensor:
        """The indices of the tokens to which bytes of `data` belong."""
        return torch.searchsorted(self.starts, positions, right=True) - 1

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes of every token by its id."""
        data = self.data.numpy().tobytes()
        places = zip(self.ids.tolist(), self.starts.tolist(), self.lengths.tolist(), strict=True)
        return {token_id: data[start : start + length] for token_id, start, length in places}


# A tokenizer's table, with the version of the vocabulary that it is for.
_cache: weakref.WeakKeyDictionary[Tokenizer, tuple[object, TokenBytes]] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The bytes of every token of `tokenizer` in the middle of a text.

    A cache holds the table of a transformers tokenizer as long as the tokenizer lives.

    tokenizer: one of transformers, a `tokenizers.Tokenizer`, or anything with `get_vocab()`,
        `convert_tokens_to_string(list[str])`, `convert_ids_to_tokens(list[int])` and a call that encodes.

    For byte-level BPE, SentencePiece with and without byte tokens, WordPiece, and BPE with an end-of-word mark, the
    bytes follow exactly from the decoder. Any other tokenizer decodes every token to text, which takes longer and
    cannot distinguish parts of characters. Special tokens add their names.

    Errors: TypeError for an object without `get_vocab`.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(f"`tokenizer` must have `get_vocab`, got {type(tokenizer).__name__}")
    steps = _decoder_steps(tokenizer)
    try:
        # `len(tokenizer)` would build the vocabulary.
        version = (str(steps), tokenizer.vocab_size, len(tokenizer.added_tokens_decoder))
        cached = _cache.get(tokenizer)
    except (AttributeError, TypeError):  # its version is unknown, or it cannot be a weak key
        return _read(tokenizer, steps)
    if cached is None or cached[0] != version:
        cached = _cache[tokenizer] = (version, _read(tokenizer, steps))
    return cached[1]


def _decoder_steps(tokenizer: object) -> Steps | None:
    """The decoder as `tokenizers` writes it into files; None where only the tokenizer itself can decode."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if type(backend).__module__.split(".")[0] == "tokenizers":
        if backend.decoder is None:
            return [{"type": "WordPiece", "prefix": "", "cleanup": False}]
        try:
            decoder = json.loads(backend.decoder.__getstate__())
        except Exception:  # a decoder written in Python
            return None
        steps: Steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        return steps if _acts_on_tokens(steps) else None
    if hasattr(tokenizer, "byte_decoder"):
        return [{"type": "ByteLevel"}]
    if hasattr(tokenizer, "sp_model"):
        return [{"type": "Metaspace", "replacement": "▁"}, {"type": "ByteFallback"}]
    return None


def _acts_on_tokens(steps: Steps) -> bool:
    """Whether pygen knows all steps, and each changes every token by itself, except at both ends of a text."""
    kinds = [step["type"] for step in steps]
    if "Fuse" in kinds:
        at = kinds.index("Fuse")
        if set(kinds[at:]) != {"Fuse", "Strip"} and kinds[at:] != ["Fuse"]:
            return False
        kinds = kinds[:at]
    if "ByteLevel" in kinds:
        return kinds == ["ByteLevel"]
    plain = all(step["pattern"].get("String") for step in steps if step["type"] == "Replace")
    return plain and set(kinds) <= {"Replace", "Metaspace", "ByteFallback", "WordPiece", "BPEDecoder"}


def _read(tokenizer: Tokenizer, steps: Steps | None) -> TokenBytes:
    vocabulary = read_vocabulary(tokenizer)
    if steps is None:
        return _from_text(Vocabulary.of(_decoded(tokenizer, vocabulary.tokens), vocabulary.ids.tolist()), [])
    if steps[0]["type"] == "ByteLevel":
        return _from_byte_level(vocabulary)
    return _from_text(vocabulary, steps)


def _decoded(tokenizer: Tokenizer, tokens: list[str]) -> list[str]:
    """The text of every token after others, since the first token of a text may lose or gain a space."""
    before = list(tokenizer.convert_ids_to_tokens(tokenizer("abcdef", add_special_tokens=False)["input_ids"]))
    start = len(tokenizer.convert_tokens_to_string(before))
    return [tokenizer.convert_tokens_to_string([*before, token])[start:] for token in tokens]


def _from_text(vocabulary: Vocabulary, steps: Steps) -> TokenBytes:
    blob = vocabulary.text.encode().replace(vocabulary.gap.encode(), _GAP)
    for step in steps:
        for old, new in _replacements(step):
            blob = blob.replace(old, new)
    values = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    table = _split(vocabulary.ids, values, values == _GAP[0])
    if any(step["type"] == "ByteFallback" for step in steps):
        _read_names_of_bytes(table)
    return table


def _read_names_of_bytes(table: TokenBytes) -> None:
    """Replaces every token <0xF0> by the byte that it names, in place."""
    index = (table.lengths == 6).nonzero()[:, 0]
    places = table.starts[index, None] + torch.arange(6)
    letters = table.data[places].long()
    digits = torch.full((256,), -1).index_copy(0, torch.tensor(list(b"0123456789ABCDEF")), torch.arange(16))
    high, low = digits[letters[:, 3]], digits[letters[:, 4]]
    framed = (letters[:, [0, 1, 2, 5]] == torch.tensor(list(b"<0x>"))).all(1)
    named = framed & (high >= 0) & (low >= 0)
    table.data[places[named]] = 255
    table.data[places[named, 0]] = (16 * high + low)[named].to(torch.uint8)
    table.lengths[index[named]] = 1


def _replacements(step: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """The replacements of a decoder step in a text with a gap before every token."""
    if step["type"] == "Replace":
        return [(step["pattern"]["String"].encode(), step["content"].encode())]
    if step["type"] == "Metaspace":
        return [(step["replacement"].encode(), b" ")]
    if step["type"] == "BPEDecoder":
        return [(step["suffix"].encode(), b" ")]
    if step["type"] == "WordPiece":
        joined = [(_GAP + b" " + step["prefix"].encode(), _GAP)] if step["prefix"] else []
        cleaned = [(old.encode(), new.encode()) for old, new in _CLEAN_UP.items()] if step["cleanup"] else []
        return [(_GAP, _GAP + b" "), *joined, *cleaned]
    return []


def _from_byte_level(vocabulary: Vocabulary) -> TokenBytes:
    """A letter writes each byte; a token with any other character adds its text."""
    letters = _byte_letters()
    table = torch.full((ord(max(letters)) + 2,), -1, dtype=torch.int16)
    table[[ord(letter) for letter in letters]] = torch.arange(256, dtype=torch.int16)
    values, is_gap = _looked_up(vocabulary, table)
    other = (values < 0) & ~is_gap
    if other.any():
        tokens = vocabulary.tokens
        for index in (is_gap.cumsum(0)[other].unique() - 1).tolist():
            tokens[index] = "".join(letters[value] for value in tokens[index].encode())
        values, is_gap = _looked_up(Vocabulary.of(tokens, vocabulary.ids.tolist()), table)
    return _split(vocabulary.ids, values, is_gap)


def _looked_up(vocabulary: Vocabulary, table: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.frombuffer(bytearray(vocabulary.text.encode("utf-32-le")), dtype=torch.int32)
    return table.index_select(0, codes.clamp(max=len(table) - 1)), codes == ord(vocabulary.gap)


def _byte_letters() -> list[str]:
    """The letter of every byte: its Latin-1 character if that is visible, else the next one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in visible else next(others)) for value in range(256)]


def _split(ids: Tensor, values: Tensor, is_gap: Tensor) -> TokenBytes:
    """values: the bytes of all tokens, with a gap before each token, where `is_gap` is True."""
    gaps = is_gap.nonzero()[:, 0]
    lengths = torch.diff(gaps, append=torch.tensor([len(values)])) - 1
    return TokenBytes(ids, gaps + 1, lengths, values.to(torch.uint8).masked_fill_(is_gap, 255))
