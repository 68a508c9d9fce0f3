"""The interface of adapters, through which decoding loops run models of any family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.wrappers import called, inner, mixin_of
from pygen.outputs import GenerateOutput
from pygen.request.prompt import Prompt
from pygen.request.settings import SpecialTokens


class ModelAdapter(Protocol):
    """One model during one call.

    `generate` uses the methods up to `start` to set a call up; a decoding loop uses the others. An adapter has all the
    state of a call. It changes neither the model nor the caller's arguments, except that it extends a caller's cache.
    """

    generation_config: object
    is_encoder_decoder: bool
    max_position_embeddings: int | None
    sorts_drawn_beams: bool  # the argument `sort_draws` of `beam_step` under torch's noise
    before_forward: Callable[[], None]  # runs before each forward of a loop; `generate` may replace it

    def check(self, model_kwargs: Mapping[str, object], generation_config: object) -> None:
        """ValueError with the names of arguments that the model does not use, NotImplementedError for other models.

        generation_config: the caller's, or None.
        """
        ...

    def prompt(
        self, inputs: object, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        """The checked inputs of the call, with default masks, positions and decoder prompts. It runs no forward."""
        ...

    def fit_positions(self, prompt: Prompt, max_new_tokens: int) -> int:
        """The number of new tokens, at most `max_new_tokens`, for which the model has positions after the prompts.

        Errors: ValueError for prompts with more positions than the model has.
        """
        ...

    def start(
        self,
        prompt: Prompt,
        *,
        mode: GenerationMode,
        num_copies: int,
        max_new_tokens: int,
        hidden_states: bool = False,
    ) -> None:
        """Prepares cache and buffers for `num_copies` rows per prompt, and runs the encoder once per prompt.

        num_copies: max(num_beams, num_return_sequences).
        hidden_states: whether the loop calls `take_hidden_states` after every forward.
        """
        ...

    def idle(self) -> None:
        """Runs a forward without cache or result, which other processes need in order to run theirs."""
        ...

    def hand_over(self) -> dict[str, object]:
        """The expanded arguments of the model's forwards, for a caller's decoding loop; it replaces `prefill`."""
        ...

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        """(rows, prompt_length) -> logits (rows, vocab_size) after the prompts, rows = batch_size * num_copies.

        The copies of a prompt are adjacent. They share one forward where the adapter can expand the cache after it.
        """
        ...

    def decode(self, token_ids: Tensor) -> Tensor:
        """(rows, length), with one new column -> logits (rows, vocab_size) after it."""
        ...

    def decode_tail(self, token_ids: Tensor, count: int) -> Tensor:
        """(rows, length), with `count` new columns -> logits (rows, count, vocab_size) after each of them.

        A count above 1 requires `can_crop`.
        """
        ...

    def take_hidden_states(self, layers: Sequence[int]) -> list[Tensor]:
        """(rows, length, width) for each of `layers`, of all forwards since the last call; layer 0 is the embeddings.

        After `prefill`, rows may be one per prompt.
        Errors: NotImplementedError for models that do not return hidden states.
        """
        ...

    can_rewind: bool

    def rewind(self) -> None:
        """Undoes the last `decode`, its records included, as far as the caller can see it. Ends the call."""
        ...

    @property
    def can_crop(self) -> bool:
        """Whether `crop` works; known after `prefill`, since some caches create their layers then."""
        ...

    reads_at_once: bool
    """Whether `decode_tail` runs one forward for all its columns, not one for each. Known after `prefill`."""

    def hold(self) -> None:
        """Declares all columns so far final: `crop` will not go back before them."""
        ...

    def crop(self, num_tokens: int) -> bool:
        """Makes the model forget the last `num_tokens` columns, so that `decode` can replace them.

        It requires `can_crop`. Masks and positions follow the length of the next ids. `records` stay unchanged.
        Returns False, and changes nothing, where no copy of the states is old enough: `hold` came later or never.
        """
        ...

    def catch_up(self) -> None:
        """Ends a loop that used `crop`: a cache that the caller gets then contains all remaining columns."""
        ...

    def reorder(self, source_rows: Tensor, shared: Tensor, generated: int) -> None:
        """After a step of beam search: row r continues the text of row `source_rows[r]`.

        Both rows belong to one prompt, so their texts differ in generated columns only, and agree in the first
        `shared[r]` of these.

        source_rows, shared: (rows,) int64.
        generated: the number of generated columns that the model has seen.
        """
        ...

    def rows_stay(self, rows: int) -> str | None:
        """Why none of the `rows` rows can leave the batch, or None. Caches and inputs count after `prefill` only."""
        ...

    def keep_rows(self, rows: Tensor) -> None:
        """Rows leave the batch: from now on row r is the previous row `rows[r]`, (rows,) int64, in increasing order.

        It requires that `rows_stay` returns None. `close` gives a cache that the caller sees all rows again.
        """
        ...

    shows_cache: bool
    """Whether the caller passed the cache or gets it back. Known after `start`."""

    def align_cache(self, rows: Tensor, num_tokens: int) -> None:
        """After a beam search: row r of the cache becomes its row `rows[r]`, without the last `num_tokens` positions.

        It marks a cache that it cannot cut, so that later calls refuse it (`pygen.models.cache.cut`).
        """
        ...

    def close(self) -> None:
        """Ends the call, also after an error: a cache that the caller sees then has transformers' own layers."""
        ...

    @property
    def cache(self) -> Any:
        """The current cache, or None."""
        ...

    records: dict[str, list[object]]
    """The attentions and hidden states that the caller asked for, one entry per forward, by the output's field.

    `decode_tail` adds one entry for all its columns, as the model returned it; the second to last dimension counts the
    columns. A loop that accepts some of them cuts the entry itself.
    """

    record_dims: dict[str, list[int | None]]
    """By name, the row dimension of every tensor in an entry; the first dimension for a missing name."""

    def recorded(self) -> dict[str, Any]:
        """The fields of the output that come from the model: `records` as tuples, and encoder states."""
        ...

    def output_class(self, *, beams: bool) -> type[GenerateOutput]:
        """The class of the call's output."""
        ...


def takes(adapter: ModelAdapter, name: str, value: object) -> bool:
    """Whether the model uses the argument."""
    try:
        adapter.check({name: value}, GenerationConfig())
    except ValueError:
        return False
    return True


def adapt(model: nn.Module) -> ModelAdapter:
    """The adapter for `model`: by its mixin, transformers' or pygen's, else that of a plain module over `input_ids`.

    Errors: TypeError for anything but an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    mixin = mixin_of(inner(model))
    model = called(model)
    if mixin == "transformers":
        from pygen.models.transformers import TransformersAdapter

        return TransformersAdapter(model)
    if mixin == "pygen":
        from pygen.models.mixin import MixinAdapter

        return MixinAdapter(model)
    from pygen.models.module import ModuleAdapter

    return ModuleAdapter(model)
