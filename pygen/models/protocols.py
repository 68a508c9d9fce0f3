"""Models and caches of transformers, by the members that pygen uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class ModelConfig(Protocol):
    is_encoder_decoder: bool
    model_type: str


class TransformersModel(nn.Module):
    """Declares the type of a generation model of transformers; pygen makes no instance.

    The hooks are methods of transformers' `GenerationMixin`, which a model class may override.
    """

    config: ModelConfig
    main_input_name: str
    get_decoder: Callable[[], nn.Module]
    get_encoder: Callable[[], nn.Module]
    prepare_inputs_for_generation: Callable[..., dict[str, Any]]
    _prepare_model_inputs: Callable[..., tuple[Tensor, str, dict[str, Any]]]
    _prepare_decoder_input_ids_for_generation: Callable[..., tuple[Tensor, dict[str, Any]]]
    _prepare_attention_mask_for_generation: Callable[..., Tensor]
    _prepare_position_ids_for_generation: Callable[..., Tensor]
    _prepare_encoder_decoder_kwargs_for_generation: Callable[..., dict[str, Any]]
    _prepare_cache_for_generation: Callable[..., None]
    _supports_default_dynamic_cache: Callable[[], bool]
    _validate_model_kwargs: Callable[[Mapping[str, object]], None]
    _expand_inputs_for_generation: Callable[..., tuple[Tensor | None, dict[str, Any]]]
    _update_model_kwargs_for_generation: Callable[..., dict[str, Any]]
    _optimize_model_for_decode: Callable[[], AbstractContextManager[None]]


class ForwardOutput(Protocol):
    """The output of a forward of transformers: a mapping from fields to values, with an attribute for each."""

    @property
    def logits(self) -> Tensor: ...

    def __contains__(self, name: object, /) -> bool: ...

    def __getitem__(self, name: str, /) -> object: ...


class Cache(Protocol):
    """A cache that can move and repeat its rows, and forget its last positions."""

    def batch_repeat_interleave(self, repeats: int, /) -> object: ...

    def batch_select_indices(self, rows: Tensor, /) -> object: ...

    def reorder_cache(self, rows: Tensor, /) -> object: ...

    def crop(self, max_length: int, /) -> object: ...
