"""What `generate` returns when `return_dict_in_generate` is set."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from pygen.ops import TopLogprobs

__all__ = [
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerateOutput",
    "TopLogprobs",
]


@dataclass
class GenerateOutput:
    """Base of the outputs: fields by attribute, name and place; what is None does not exist for the latter two.

    `output.sequences`, `output["sequences"]` and `output[0]` are the same. Iterating gives names, as for a dict;
    `to_tuple()` gives the values. The cache answers to both of its names, `past_key_values` and `cache`.
    """

    @property
    def cache(self) -> Any:
        return getattr(self, "past_key_values", None)

    @cache.setter
    def cache(self, cache: Any) -> None:
        self["past_key_values"] = cache

    def _present(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self._present().values())

    def keys(self) -> KeysView[str]:
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        return self._present().items()

    def get(self, name: str, default: Any = None) -> Any:
        return self._present().get(_field(name), default)

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[_field(key)] if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        if _field(name) not in {f.name for f in fields(self)}:
            raise KeyError(name)
        setattr(self, _field(name), value)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _field(name) in self._present()

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())


def _field(name: str) -> str:
    return "past_key_values" if name == "cache" else name


@dataclass
class GenerateDecoderOnlyOutput(GenerateOutput):
    """Result of greedy search and sampling with a decoder-only model.

    With N = batch_size * num_return_sequences rows, prompts of P tokens, T steps, a vocabulary of V:

    sequences: (N, P + T) int64.
    scores: T tensors (N, V) float32, processed scores, removed entries -inf (`output_scores`).
    logits: T tensors (N, V) float32, as the model gave them (`output_logits`).
    attentions: T tuples over layers of (N, heads, queries, keys); queries are P at first, then 1 (`output_attentions`).
    hidden_states: T tuples over layers + 1 of (N, queries, width) (`output_hidden_states`).
    past_key_values: the cache after the last forward.
    finish_reason: per row "eos", "length", or "stop" (a stopping criterion, the time limit or `cancel`).
    logprobs: (N, T) float32, ln of each token's probability in the distribution it was drawn from, 0 after a row had
        finished, so that a row's sum is the log-probability of what it generated (`output_logprobs`).
    top_logprobs: `token_ids` (N, T, n) int64 and `logprobs` (N, T, n) float32, the n best of that distribution; -1 and
        -inf where there are fewer and after a row had finished (`top_logprobs`).
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None
    finish_reason: list[str] | None = None
    logprobs: Tensor | None = None
    top_logprobs: TopLogprobs | None = None


@dataclass
class GenerateEncoderDecoderOutput(GenerateOutput):
    """Result of greedy search and sampling with an encoder-decoder model.

    Fields as in `GenerateDecoderOnlyOutput`, with P the length of the decoder's prompts, and, with S positions read by
    the encoder:

    encoder_attentions: layers of (batch_size, heads, S, S), for the batch as it was given (`output_attentions`).
    encoder_hidden_states: layers + 1 of (batch_size, S, width) (`output_hidden_states`).
    decoder_attentions, decoder_hidden_states: what `attentions` and `hidden_states` are there.
    cross_attentions: T tuples over layers of (N, heads, queries, S) (`output_attentions`).
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None
    finish_reason: list[str] | None = None
    logprobs: Tensor | None = None
    top_logprobs: TopLogprobs | None = None


@dataclass
class GenerateBeamDecoderOnlyOutput(GenerateOutput):
    """Result of beam search and beam sampling with a decoder-only model.

    With N = batch_size * num_return_sequences rows returned, R = batch_size * num_beams rows run, prompts of P tokens,
    T steps, L tokens in the longest row returned, a vocabulary of V:

    sequences: (N, P + L) int64, the best first.
    sequences_scores: (N,) float32, sum of the tokens' scores over length ** length_penalty (`output_scores`).
    scores: T tensors (R, V) float32, processed log-probabilities (`output_scores`).
    logits: T tensors (R, V) float32, as the model gave them (`output_logits`).
    beam_indices: (N, L) int32, the row of `scores` that each token was taken from; -1 after the end.
    attentions, hidden_states: as in `GenerateDecoderOnlyOutput`, with R rows.
    past_key_values: the cache after the last forward.
    finish_reason: per row "eos", "length" or "stop".
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[Any, ...] | None = None
    hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None
    finish_reason: list[str] | None = None


@dataclass
class GenerateBeamEncoderDecoderOutput(GenerateOutput):
    """Result of beam search and beam sampling with an encoder-decoder model.

    Fields as in `GenerateBeamDecoderOnlyOutput` and, for the states, `GenerateEncoderDecoderOutput` with R rows.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None
    finish_reason: list[str] | None = None
