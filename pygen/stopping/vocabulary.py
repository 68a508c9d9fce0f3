"""All tokens of a tokenizer in one string, without a Python object for each where that is possible."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.request.protocols import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """text: the tokens, each after `gap`, a character that is in no token. ids: (n,) int64, in the same order."""

    text: str
    gap: str
    ids: Tensor

    @classmethod
    def of(cls, tokens: list[str], ids: list[int]) -> Vocabulary:
        text = "".join(tokens)
        gap = _absent_from(text)
        return cls(gap + gap.join(tokens) if tokens else "", gap, torch.frombuffer(array("q", ids), dtype=torch.int64))

    @property
    def tokens(self) -> list[str]:
        return self.text.split(self.gap)[1:]


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokens of `tokenizer`, added ones too."""
    return _decoded_at_once(tokenizer) or _listed(tokenizer)


def _listed(tokenizer: Tokenizer) -> Vocabulary:
    vocabulary = tokenizer.get_vocab()
    return Vocabulary.of(list(vocabulary), list(vocabulary.values()))


def _decoded_at_once(tokenizer: object) -> Vocabulary | None:
    """The tokens as a tokenizer without decoder decodes all ids: joined by spaces.

    That takes a third of the time of `get_vocab`. None for other tokenizers than those of `tokenizers`, and where a
    token contains a space or an id below the number of tokens has no token.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    kind = type(backend)
    if (kind.__module__, kind.__name__) != ("tokenizers", "Tokenizer"):
        return None
    model, count = backend.model, backend.get_vocab_size(with_added_tokens=False)
    if count == 0:
        return None
    text: str = kind(model).decode(list(range(count)), skip_special_tokens=False)
    if text.count(" ") != count - 1:
        return None
    added = {token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()}
    if any(token_id < count and model.id_to_token(token_id) != token for token_id, token in added.items()):
        return None
    more = {token_id: token for token_id, token in added.items() if token_id >= count}
    gap = _absent_from("".join([text, *more.values()]))
    text = "".join([gap, text.replace(" ", gap), *(gap + token for token in more.values())])
    return Vocabulary(text, gap, torch.cat([torch.arange(count), torch.tensor(list(more), dtype=torch.int64)]))


def _absent_from(text: str) -> str:
    return next(letter for letter in map(chr, range(0x110000)) if letter not in text)
