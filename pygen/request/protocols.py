"""Objects of other libraries that a caller passes, by the members that pygen uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class HasVocabSize(Protocol):
    @property
    def vocab_size(self) -> int: ...


class HasEosTokenId(Protocol):
    @property
    def eos_token_id(self) -> int | None: ...


class GenerationSettings(Protocol):
    """The part of a `GenerationConfig`, pygen's or transformers', that gives special tokens and a length."""

    @property
    def bos_token_id(self) -> object: ...

    @property
    def eos_token_id(self) -> object: ...

    @property
    def pad_token_id(self) -> object: ...

    @property
    def decoder_start_token_id(self) -> int | list[int] | None: ...

    @property
    def max_length(self) -> int | None: ...


class TextDecoder(Protocol):
    """Decodes ids: `decode(list[int], **options) -> str`, as every tokenizer does."""

    @property
    def decode(self) -> Callable[..., object]: ...


class Tokenizer(TextDecoder, HasEosTokenId, HasVocabSize, Protocol):
    """A tokenizer of transformers, or anything with these members.

    Called with a text, it returns a mapping with `input_ids`, which is also an attribute of the result.
    """

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, object]: ...

    def __call__(self, text: Any, /, **options: Any) -> Any: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def convert_ids_to_tokens(self, ids: list[int], /) -> Sequence[str]: ...

    def convert_tokens_to_string(self, tokens: list[str], /) -> str: ...

    def batch_decode(self, sequences: Tensor, /, *, skip_special_tokens: bool) -> list[str]: ...


class Streamer(Protocol):
    """Receives the prompts and every step's tokens, then `end()`; or `fail(error)` where it has that method."""

    def put(self, value: Tensor, /) -> object: ...

    def end(self) -> object: ...
