"""What `generate` returns with `return_dict_in_generate=True`: items as in transformers, and attributes beyond them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pygen.ops import KeptTokens, TopLogprobs

# One entry per forward, of one tensor per layer.
Records = tuple[tuple[Tensor, ...], ...]

Key = TypeVar("Key")

__all__ = [
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerateOutput",
    "KeptSets",
    "TopLogprobs",
]


def ranges(starts: Tensor, counts: Tensor) -> Tensor:
    """start, start + 1, ... of every start, as many as its count; all (n,) int64."""
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(starts - before, counts) + torch.arange(int(counts.sum()), device=starts.device)


@dataclass(frozen=True, eq=False)
class KeptSets:
    """The tokens that survived all filters, for every row and step: the sets that tokens were drawn from.

    With s the scores over the temperature, penalties, bans and biases applied, a token of `sets[r, t]` was drawn with
    log-probability s[token] - log_mass[r, t]. A greedy row keeps its token alone. A row keeps nothing after its end,
    and where it has no valid choice (`on_invalid`).

    token_ids: (n,) int32; row r kept the ids from offsets[r * steps + t] to offsets[r * steps + t + 1] at step t,
        ascending.
    offsets: (rows * steps + 1,) int64, from 0 to n.
    log_mass: (rows, steps) float32, ln of the sum of e^s over all kept tokens; -inf where none is kept.
    complete: (rows, steps) bool; False where more than `kept_limit` tokens survived, of which none is stored.
    """

    token_ids: Tensor
    offsets: Tensor
    log_mass: Tensor
    complete: Tensor

    @property
    def counts(self) -> Tensor:
        """(rows, steps) int64, the number of ids stored."""
        return self.offsets.diff().view(self.log_mass.shape)

    def __getitem__(self, at: tuple[int, int]) -> Tensor:
        """The ids (k,) int32 of a row and a step, as a view."""
        (row, step), (rows, steps) = at, self.log_mass.shape
        if not (-rows <= row < rows and -steps <= step < steps):
            raise IndexError(f"`kept` has {rows} rows and {steps} steps, got {at}")
        first, end = self.offsets[row % rows * steps + step % steps :][:2].tolist()
        return self.token_ids[first:end]

    def row(self, row: int) -> KeptTokens:
        """The sets of one row, by step; views but for the offsets."""
        rows, steps = self.log_mass.shape
        if not -rows <= row < rows:
            raise IndexError(f"`kept` has {rows} rows, got {row}")
        offsets = self.offsets[row % rows * steps :][: steps + 1]
        first, end = int(offsets[0]), int(offsets[-1])
        return KeptTokens(self.token_ids[first:end], offsets - first, self.log_mass[row], self.complete[row])

    def select(self, rows: Tensor) -> KeptSets:
        """A copy of the sets of some rows, (k,) int64, in this order; for the mini-batches of a trainer."""
        rows = rows.to(self.offsets.device)
        counts = self.counts[rows].flatten()
        starts = self.offsets[:-1].view(self.log_mass.shape)[rows].flatten()
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, dim=0, out=offsets[1:])
        return KeptSets(self.token_ids[ranges(starts, counts)], offsets, self.log_mass[rows], self.complete[rows])

    def to(self, device: torch.device | str) -> KeptSets:
        """The same on a device."""
        return KeptSets(*(getattr(self, field.name).to(device) for field in fields(self)))


class ModelOutput(MutableMapping[str, Any]):
    """Base of dataclasses whose fields are items: by attribute, name and index. A field that is None is no item.

    `output.sequences`, `output["sequences"]` and `output[0]` are the same. Iterating gives names, as for a dict;
    `to_tuple()` gives the values. `output[name] = value` may add an item, which is an attribute too; an attribute that
    is set and is no field is no item. A mapping or pairs given as the first field hold all fields, so that
    `type(output)(dict(output))` is a copy. `torch.utils._pytree` maps over the items.
    """

    _added: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        pytree.register_pytree_node(
            cls,
            lambda output: ([*output.values()], [*output.keys()]),
            lambda values, names: cls(zip(names, values, strict=True)),  # type: ignore[call-arg]
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __post_init__(self) -> None:
        first = fields(self)[0].name  # type: ignore[arg-type]
        given = getattr(self, first)
        if isinstance(given, Iterable) and not isinstance(given, Tensor):
            entries = given if isinstance(given, Mapping) else dict(given)
            setattr(self, first, None)
            for name, value in entries.items():
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, name: str, value: object) -> None:
        if name not in self._names():
            self._added = (*self._added, name)
        setattr(self, name, value)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        setattr(self, name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._names() and getattr(self, str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names() if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _names(self) -> list[str]:
        return [*(field.name for field in fields(self)), *self._added]  # type: ignore[arg-type]


class GenerateOutput:
    """Base of all outputs: attributes beyond the items of transformers, None where unknown.

    finish_reason: per row "eos", "length", or "stop" (a stopping criterion, the time limit or `cancel`).
    logprobs: (N, T) float32, ln of each token's probability in the distribution it was drawn from, 0 after a row had
        finished, so that a row's sum is the log-probability of what it generated (`output_logprobs`). With beams
        (N, L): the distribution is softmax of the processed scores of the beam that the token grew from. With
        `output_logprobs="raw"` the distribution is softmax of the model's logits, before any setting shapes them.
    top_logprobs: `token_ids` (N, T, n) int64 and `logprobs` (N, T, n) float32, the n best of that distribution; -1 and
        -inf where fewer exist and after a row had finished (`top_logprobs`). With beams L replaces T.
    kept: the tokens that survived all filters, N rows and T steps (`output_kept`).

    For a model of transformers, outputs are subclasses of its `Generate...Output` (`pygen.models.outputs`), which
    also count as instances of the classes here.
    """

    CACHE_FIELD: ClassVar[str] = "past_key_values"

    sequences: Tensor
    finish_reason: list[str] | None = None
    logprobs: Tensor | None = None
    top_logprobs: TopLogprobs | None = None
    kept: KeptSets | None = None


class WithCacheName:
    """Makes `cache`, the name since transformers 5.24, another name of `past_key_values`."""

    past_key_values: Any

    @property
    def cache(self) -> Any:
        return self.past_key_values

    @cache.setter
    def cache(self, value: Any) -> None:
        self.past_key_values = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(_field(key))  # type: ignore[misc]

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(_field(key), value)  # type: ignore[misc]

    def __contains__(self, key: object) -> bool:
        return bool(super().__contains__(_field(key)))  # type: ignore[misc]

    def get(self, key: str, default: object = None) -> Any:
        return super().get(_field(key), default)  # type: ignore[misc]


def _field(key: Key) -> Key | str:
    return "past_key_values" if key == "cache" else key


def make_output(
    kind: type[GenerateOutput],
    *,
    cache: object,
    finish_reason: list[str],
    logprobs: Tensor | None = None,
    top_logprobs: TopLogprobs | None = None,
    kept: KeptSets | None = None,
    **fields: object,
) -> GenerateOutput:
    """An output of class `kind`, with the attributes of `GenerateOutput`."""
    output = kind(**fields, **{kind.CACHE_FIELD: cache})
    output.finish_reason = finish_reason
    output.logprobs = logprobs
    output.top_logprobs = top_logprobs
    output.kept = kept
    return output


@dataclass
class GenerateDecoderOnlyOutput(WithCacheName, GenerateOutput, ModelOutput):
    """Result of greedy search and sampling with a decoder-only model.

    With N = batch_size * num_return_sequences rows, prompts of P tokens, T steps, a vocabulary of V:

    sequences: (N, P + T) int64.
    scores: T tensors (N, V) float32, processed scores, removed entries -inf (`output_scores`).
    logits: T tensors (N, V) float32, as the model gave them (`output_logits`).
    attentions: T tuples over layers of (N, heads, queries, keys); queries are P at first, then 1 (`output_attentions`).
    hidden_states: T tuples over layers + 1 of (N, queries, width) (`output_hidden_states`).
    past_key_values: the cache after the last forward.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: Records | None = None
    hidden_states: Records | None = None
    past_key_values: Any = None


@dataclass
class GenerateEncoderDecoderOutput(WithCacheName, GenerateOutput, ModelOutput):
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
    decoder_attentions: Records | None = None
    cross_attentions: Records | None = None
    decoder_hidden_states: Records | None = None
    past_key_values: Any = None


@dataclass
class GenerateBeamDecoderOnlyOutput(WithCacheName, GenerateOutput, ModelOutput):
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
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: Records | None = None
    hidden_states: Records | None = None
    past_key_values: Any = None


@dataclass
class GenerateBeamEncoderDecoderOutput(WithCacheName, GenerateOutput, ModelOutput):
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
    decoder_attentions: Records | None = None
    cross_attentions: Records | None = None
    decoder_hidden_states: Records | None = None
    past_key_values: Any = None
