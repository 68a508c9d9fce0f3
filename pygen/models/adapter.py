"""Adapters: what a loop needs of a model, whatever family it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.wrappers import called, inner, mixin_of
from pygen.outputs import GenerateOutput
from pygen.request.prompt import Prompt
from pygen.request.settings import SpecialTokens


class ModelAdapter(Protocol):
    """One model during one call.

    `generate` uses the first part to set up; a loop uses only the second. An adapter keeps its state to itself: nothing
    is stored on the model, and the caller's arguments are not written to, but the caller's cache is extended.
    """

    generation_config: Any
    is_encoder_decoder: bool
    max_position_embeddings: int | None
    sorts_drawn_beams: bool  # `sort_draws` of `beam_step`, where the noise is torch's
    before_forward: Callable[[], None]  # called before each forward of a loop; `generate` may replace it

    def check(self, model_kwargs: dict[str, Any], generation_config: Any) -> None:
        """ValueError naming the arguments that the model does not use, NotImplementedError for models out of reach.

        generation_config: what the caller passed, or None.
        """
        ...

    def prompt(
        self, inputs: Any, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        """The checked inputs of the call, with masks, positions and decoder prompts filled in; runs nothing."""
        ...

    def room_for(self, prompt: Prompt, max_new_tokens: int) -> int:
        """How many of `max_new_tokens` the model has positions for. ValueError where the prompts have too many."""
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
        """Prepares cache and buffers for `num_copies` rows per prompt, and runs the encoder, once per prompt.

        num_copies: max(num_beams, num_return_sequences).
        hidden_states: whether the loop calls `take_hidden_states` after every forward.
        """
        ...

    def idle(self) -> None:
        """A forward whose result nobody reads, beside the cache: other processes need it to go on with theirs."""
        ...

    def hand_over(self) -> dict[str, Any]:
        """In the place of `prefill`: the arguments of the model's forwards, expanded, for a loop of the caller's."""
        ...

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        """(rows, prompt_length) -> logits (rows, vocab_size) after the prompts, rows = batch_size * num_copies.

        The copies of a prompt stand side by side. They share one forward where the cache can be expanded after it.
        """
        ...

    def decode(self, token_ids: Tensor) -> Tensor:
        """(rows, length), a column more than the model has seen -> logits (rows, vocab_size) after the last one."""
        ...

    def decode_tail(self, token_ids: Tensor, count: int) -> Tensor:
        """(rows, length), `count` columns more than the model has seen -> logits (rows, count, vocab_size) after each.

        Counts above 1 need `can_crop`.
        """
        ...

    def take_hidden_states(self, layers: Sequence[int]) -> list[Tensor]:
        """(rows, length, width) for each of `layers`, of what was forwarded since the last time; 0 are the embeddings.

        After `prefill` rows may be those of the batch only.
        NotImplementedError for models that do not return them.
        """
        ...

    can_rewind: bool

    def rewind(self) -> None:
        """Takes the last `decode` back, records too, as far as the caller could see it. Ends the call."""
        ...

    @property
    def can_crop(self) -> bool:
        """Whether `crop` works; known after `prefill`, since some caches learn then what they hold."""
        ...

    reads_at_once: bool
    """Whether `decode_tail` reads its columns in one forward; else in a forward each. Known after `prefill`."""

    def hold(self) -> None:
        """What the model has seen so far is certain: `crop` does not go back before it."""
        ...

    def crop(self, num_tokens: int) -> bool:
        """Makes the model forget the last `num_tokens` columns, so that others may be decoded in their place.

        Needs `can_crop`. Masks and positions follow the length of what is decoded next. `records` stay as they are.
        False where states were not kept so far back, since `hold` was called later or never; nothing changes then.
        """
        ...

    def catch_up(self) -> None:
        """Ends a loop that used `crop`: a cache that the caller sees has seen all columns that are left."""
        ...

    def reorder(self, source_rows: Tensor, shared: Tensor, generated: int) -> None:
        """After a step of beam search: row r goes on from what the model has seen of row `source_rows[r]`.

        Rows of one prompt stay among themselves, so only what was generated differs, and of that all but the first
        `shared[r]` columns.

        source_rows, shared: (rows,) int64.
        generated: how many generated columns the model has seen.
        """
        ...

    shows_cache: bool
    """Whether the caller gets to see the cache: it was given, or is returned. Known after `start`."""

    def align_cache(self, rows: Tensor, num_tokens: int) -> None:
        """After a beam search: row r of the cache becomes its row `rows[r]`, without the last `num_tokens` positions.

        A cache that cannot be cut is marked, so that no later call goes on from it (`pygen.models.cache.cut`).
        """
        ...

    def close(self) -> None:
        """Ends the call, whether or not it failed: a cache that the caller sees is as transformers makes it."""
        ...

    @property
    def cache(self) -> Any:
        """The cache as it is now, or None."""
        ...

    records: dict[str, list[Any]]
    """What the caller asked to keep, one entry per forward, by the name of the output's field: attentions, ...

    `decode_tail` adds one entry for all its columns, as the model returned it (the queries' dimension is the second to
    last, `count` long); a loop that accepts only some of them cuts it up itself.
    """

    record_dims: dict[str, list[int | None]]
    """By name, the dimension of the rows in every tensor of a record's entry; where the name is missing, the first."""

    def recorded(self) -> dict[str, Any]:
        """Fields of the output that come from the model: `records` as tuples, and encoder states."""
        ...

    def output_class(self, *, beams: bool) -> type[GenerateOutput]:
        """What the call returns."""
        ...


def takes(adapter: ModelAdapter, name: str, value: Any) -> bool:
    """Whether the model uses an argument."""
    try:
        adapter.check({name: value}, GenerationConfig())
    except ValueError:
        return False
    return True


def adapt(model: Any) -> ModelAdapter:
    """The adapter for `model`: by the mixin that it has, transformers' or pygen's, else any module over `input_ids`."""
    mixin = mixin_of(inner(model))
    model = called(model)
    if mixin == "transformers":
        from pygen.models.transformers import TransformersAdapter

        return TransformersAdapter(model)
    if mixin == "pygen":
        from pygen.models.mixin import MixinAdapter

        return MixinAdapter(model)
    if isinstance(model, nn.Module):
        from pygen.models.module import ModuleAdapter

        return ModuleAdapter(model)
    raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
