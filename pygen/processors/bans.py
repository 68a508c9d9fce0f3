"""Processors that take tokens away: their scores become -inf."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pygen.processors._checks import id_tensor, rows_of_batch
from pygen.processors.base import LogitsProcessor, process, suppress
from pygen.rules import checked, integer


class MinLengthLogitsProcessor(LogitsProcessor):
    """No end-of-sequence id while the sequence, prompt included, is shorter than `min_length` >= 0."""

    supports_continuous_batching = False

    def __init__(self, min_length: int, eos_token_id: int | list[int] | Tensor, device: str = "cpu") -> None:
        self.min_length = checked("min_length", min_length, integer(0))
        self.eos_token_id = id_tensor("eos_token_id", eos_token_id, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return suppress(scores, self.eos_token_id) if input_ids.shape[-1] < self.min_length else scores


class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """No end-of-sequence id while fewer than `min_new_tokens` follow the first `prompt_length_to_skip` tokens."""

    supports_continuous_batching = False

    def __init__(
        self,
        prompt_length_to_skip: int,
        min_new_tokens: int,
        eos_token_id: int | list[int] | Tensor,
        device: str = "cpu",
    ) -> None:
        self.prompt_length_to_skip = checked("prompt_length_to_skip", prompt_length_to_skip, integer(0))
        self.min_new_tokens = checked("min_new_tokens", min_new_tokens, integer(0))
        self.eos_token_id = id_tensor("eos_token_id", eos_token_id, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids.shape[-1] - self.prompt_length_to_skip
        return suppress(scores, self.eos_token_id) if generated < self.min_new_tokens else scores


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """No token of `suppress_tokens`, ever; ids outside the vocabulary are ignored."""

    def __init__(self, suppress_tokens: Iterable[int] | Tensor, device: str = "cpu") -> None:
        self.suppress_tokens = id_tensor("suppress_tokens", list(suppress_tokens), device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return suppress(scores, self.suppress_tokens)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """No token of `begin_suppress_tokens` while the sequence has exactly `begin_index` tokens."""

    def __init__(self, begin_suppress_tokens: Iterable[int] | Tensor, begin_index: int, device: str = "cpu") -> None:
        self.begin_suppress_tokens = id_tensor("begin_suppress_tokens", list(begin_suppress_tokens), device)
        self.begin_index = begin_index

    def set_begin_index(self, begin_index: int) -> None:
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return suppress(scores, self.begin_suppress_tokens) if input_ids.shape[-1] == self.begin_index else scores


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No token that would repeat an n-gram of the row (Paulus et al. 2018): with n = ngram_size, every y such that the
    last n - 1 ids followed by y already occur in the sequence. n = 1 bans every token seen."""

    skips_hidden = True

    def __init__(self, ngram_size: int) -> None:
        self.ngram_size = checked("ngram_size", ngram_size, integer(1))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        knobs: dict[str, Any] = {"input_ids": input_ids.long().contiguous(), "no_repeat_ngram_size": self.ngram_size}
        return process(scores, do_sample=False, **knobs)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No token that would repeat an n-gram of the encoder's input: every y such that the last n - 1 ids of the row
    followed by y occur in the input.

    encoder_input_ids: (batch_size, length) or (length,); with more rows of scores than that, each serves as many
        adjacent rows. Ids outside the vocabulary are ignored.
    """

    skips_hidden = True

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: torch.LongTensor | Tensor) -> None:
        self.ngram_size = checked("encoder_ngram_size", encoder_ngram_size, integer(1))
        ids = encoder_input_ids[None] if encoder_input_ids.dim() == 1 else encoder_input_ids
        self.batch_size = ids.shape[0]
        empty = ids.new_empty(self.batch_size, 0, self.ngram_size)
        # (batch_size, n-grams, ngram_size)
        self._ngrams = ids.unfold(1, self.ngram_size, 1) if ids.shape[1] >= self.ngram_size else empty

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        length, prefix_length = input_ids.shape[-1], self.ngram_size - 1
        if length < prefix_length:
            return scores
        ngrams = rows_of_batch("encoder_input_ids", self._ngrams.to(scores.device), scores.shape[0])
        prefix = input_ids[:, length - prefix_length :]
        repeats = ((ngrams[..., :-1] == prefix[:, None]) & (prefix >= 0)[:, None]).all(-1)
        # The op ignores ids outside the vocabulary, so -1 bans nothing.
        return process(scores, do_sample=False, suppress=ngrams[..., -1].long().masked_fill(~repeats, -1))


class AlternatingCodebooksLogitsProcessor(LogitsProcessor):
    """The two coarse codebooks in turn: at even steps after the prompt only ids in [a, b), at odd ones only from b on,
    with a = semantic_vocab_size and b = a + codebook_size.

    input_start_len: the length of the prompt, >= 0.
    """

    def __init__(self, input_start_len: int, semantic_vocab_size: int, codebook_size: int) -> None:
        self.input_start_len = checked("input_start_len", input_start_len, integer(0))
        self.semantic_vocab_size = checked("semantic_vocab_size", semantic_vocab_size, integer(0))
        self.codebook_size = checked("codebook_size", codebook_size, integer(0))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        second = self.semantic_vocab_size + self.codebook_size
        is_first = (input_ids.shape[-1] - self.input_start_len) % 2 == 0
        low, high = (self.semantic_vocab_size, second) if is_first else (second, scores.shape[-1])
        kept = torch.full_like(scores, -math.inf)
        kept[:, low:high] = scores[:, low:high]
        return kept
