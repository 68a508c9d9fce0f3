"""Checks the inputs of a transformers model, and has the model's hooks prepare prompts, masks, positions and caches.

Hooks are methods of transformers' `GenerationMixin` that a model class may replace. This module calls them instead of
repeating them, so that a class with other inputs prepares its own.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig as TransformersConfig
from transformers import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode as TransformersMode

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.config.rules import STATIC_CACHES
from pygen.models.cache import check_continues, layers_of, num_positions
from pygen.models.devices import execution_device
from pygen.models.growing_layer import make_full
from pygen.models.inputs import GrowingInputs
from pygen.models.own_generate import unpatched
from pygen.models.protocols import TransformersModel
from pygen.models.read_only import ReadOnlyModel
from pygen.models.versions import HookNames, encoder_hook, given_cache, given_cache_name, quantizers, rename_cache
from pygen.request.prompt import (
    Prompt,
    check_device,
    check_ids,
    check_mask,
    given_input,
    start_ids,
    warn_of_right_padding,
)
from pygen.request.settings import SpecialTokens, config_for_hooks

logger = logging.getLogger(__name__)

# Older names of static caches; now the model determines the kind of each layer.
_STATIC_ALIASES = {
    "sliding_window": "static",
    "hybrid_chunked": "static",
    "offloaded_hybrid": "offloaded_static",
    "offloaded_hybrid_chunked": "offloaded_static",
}
# Hooks of later releases read settings that pygen does not have.
_SETTINGS = vars(TransformersConfig()).keys()


def is_default(model: nn.Module, hook: str) -> bool:
    """Whether the class of `model` does not override transformers' `hook`; True if no such hook exists."""
    default = unpatched(GenerationMixin, hook)
    return default is None or unpatched(type(model), hook, default) is default


def _hook_config(config: GenerationConfig, tokens: SpecialTokens, device: torch.device) -> GenerationConfig:
    """A copy of `config` with the attributes that transformers' hooks read."""
    result = config_for_hooks(config, tokens, device)
    if result.cache_implementation in _STATIC_ALIASES:
        result.cache_implementation = _STATIC_ALIASES[result.cache_implementation]
    for name in _SETTINGS - vars(result).keys():
        setattr(result, name, None)
    return result


def preparer(model: nn.Module) -> object:
    """The object that replaces `prepare_inputs_for_generation` of `model`, for example peft's model with a soft prompt;
    None without one."""
    hook = vars(model).get("prepare_inputs_for_generation")
    owner = getattr(hook, "__self__", hook)
    return None if owner is model else owner


def refuse_by_preparer(model: TransformersModel, config: GenerationConfig, mode: GenerationMode) -> None:
    """NotImplementedError for features that the `preparer` of `model` does not support."""
    owner, kind = preparer(model), config.cache_implementation
    if owner is None or model.config.is_encoder_decoder:
        return
    unfit = {
        f"`prefill_chunk_size`={config.prefill_chunk_size}": config.prefill_chunk_size is not None,
        f"`cache_implementation`={kind!r}": kind not in (None, "dynamic", "offloaded"),
        "drafted tokens": mode is GenerationMode.ASSISTED_GENERATION,
    }
    for what, wanted in unfit.items():
        if wanted:
            raise NotImplementedError(
                f"{what}: {type(owner).__name__} prepares the inputs, and supports only growing caches, and forwards "
                f"over a whole prompt or one token; leave it out"
            )


def read_prompt(
    model: TransformersModel,
    inputs: object,
    model_kwargs: Mapping[str, object],
    config: GenerationConfig,
    tokens: SpecialTokens,
    device: torch.device | None,
) -> tuple[Prompt, GenerationConfig]:
    """The prompt of a call, and `config` with the attributes that hooks read.

    The function checks every argument, and then calls the hooks of `model` in transformers' order. It runs no forward.

    device: the model's; None if it takes inputs on any device.
    """
    names = HookNames(model)
    kwargs = rename_cache(model_kwargs, names.argument)
    if kwargs.get("encoder_outputs", kwargs) is None:
        del kwargs["encoder_outputs"]
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    given = _checked_inputs(model, inputs, kwargs, tokens, device)
    main_input, main_name, kwargs = model._prepare_model_inputs(given, tokens.bos, kwargs)
    hooks = _hook_config(config, tokens, main_input.device)
    if main_name == "inputs_embeds" and not is_encoder_decoder:
        hooks.use_cache = True  # only the first forward reads the embeddings
    _check_cache(model, hooks, kwargs, given_cache_name(model_kwargs))

    mask = kwargs.get("attention_mask")
    continues = given_cache(kwargs) is not None
    if mask is not None and main_name in ("input_ids", "inputs_embeds"):
        check_mask("attention_mask", mask, main_input, read_name=main_name, continues=continues)
    if is_encoder_decoder:
        _check_decoder_inputs(kwargs, main_name, main_input.shape[0], tokens, device, continues=continues)
        input_ids, kwargs = model._prepare_decoder_input_ids_for_generation(
            batch_size=main_input.shape[0],
            model_input_name=main_name,
            model_kwargs=kwargs,
            decoder_start_token_id=hooks._decoder_start_token_tensor,  # type: ignore[attr-defined]
            device=main_input.device,
        )
        mask = kwargs.get("decoder_attention_mask")
        return Prompt(input_ids, mask, main_input, main_name, kwargs, is_encoder_decoder=True), hooks
    _fill_mask_and_positions(model, main_input, main_name, kwargs, hooks)
    mask, input_ids = kwargs.get("attention_mask"), main_input
    if main_name == "input_ids":
        warn_of_right_padding(input_ids, mask, tokens.pad)
    else:
        input_ids = kwargs.pop("input_ids")
    if config.prefill_chunk_size is not None:
        _check_pieces(kwargs, names, config.prefill_chunk_size)
    return Prompt(input_ids, mask, main_input, main_name, kwargs), hooks


def _fill_mask_and_positions(
    model: TransformersModel, main_input: Tensor, main_name: str, kwargs: dict[str, Any], config: GenerationConfig
) -> None:
    parameters = inspect.signature(model.forward).parameters
    if kwargs.get("attention_mask") is None and "attention_mask" in parameters:
        if main_name == "inputs_embeds" and kwargs["input_ids"].shape[1] != main_input.shape[1]:
            # The ids do not show which embeddings are padding if their numbers differ.
            mask = torch.ones(main_input.shape[:2], dtype=torch.int64, device=main_input.device)
        else:
            mask = model._prepare_attention_mask_for_generation(main_input, config, kwargs)
        kwargs["attention_mask"] = mask
    if kwargs.get("position_ids") is None and "position_ids" in parameters:
        kwargs["position_ids"] = model._prepare_position_ids_for_generation(main_input, kwargs)


def _checked_inputs(
    model: TransformersModel,
    inputs: object,
    kwargs: dict[str, Any],
    tokens: SpecialTokens,
    device: torch.device | None,
) -> Tensor | None:
    """The main input, which it removes from `kwargs`; None if embeddings or encoder outputs replace it."""
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    encoder = getattr(model, "encoder", None) if is_encoder_decoder else None
    name = getattr(encoder, "main_input_name", model.main_input_name)
    inputs = given_input(name, inputs, kwargs)
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None and name == "input_ids":
        _check_embeds(model, embeds, inputs, device)
    if inputs is None:
        encoded = kwargs.get("encoder_outputs")
        if encoded is not None and getattr(encoded, "last_hidden_state", None) is None:
            raise TypeError(
                f"`encoder_outputs` must be an output of the encoder with `last_hidden_state`, "
                f"got {type(encoded).__name__}"
            )
        if embeds is None and encoded is None:
            if name != "input_ids":
                raise ValueError(f"`{name}` must be given: it is what {type(model).__name__} reads")
            return start_ids(tokens.bos, kwargs, execution_device(model))
        return None
    if name == "input_ids":
        return check_ids(name, inputs, device, min_length=1 if embeds is None else 0)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(inputs).__name__}")
    if inputs.ndim < 2 or inputs.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape (batch_size, ...), got {tuple(inputs.shape)}")
    check_device(name, inputs, device)
    return inputs


def _check_embeds(model: TransformersModel, embeds: object, inputs: object, device: torch.device | None) -> None:
    if model.config.is_encoder_decoder and inputs is not None:
        raise ValueError("`input_ids` and `inputs_embeds` exclude each other for an encoder-decoder model")
    if not isinstance(embeds, Tensor):
        raise TypeError(f"`inputs_embeds` must be a tensor, got {type(embeds).__name__}")
    if not embeds.is_floating_point():
        raise TypeError(f"`inputs_embeds` must hold floating-point numbers, got {embeds.dtype}")
    if embeds.ndim != 3 or 0 in embeds.shape[:2]:
        raise ValueError(
            f"`inputs_embeds` must have shape (batch_size, length, width), all at least 1, got {tuple(embeds.shape)}"
        )
    check_device("inputs_embeds", embeds, device)
    if model.config.is_encoder_decoder:
        return
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        raise ValueError(f"`inputs_embeds`: {type(model).__name__} cannot start from embeddings")
    if isinstance(inputs, Tensor) and inputs.shape[0] != embeds.shape[0]:
        raise ValueError(f"`inputs_embeds` must hold one row per prompt ({inputs.shape[0]}), got {embeds.shape[0]}")


def _check_decoder_inputs(
    kwargs: dict[str, object],
    main_name: str,
    batch_size: int,
    tokens: SpecialTokens,
    device: torch.device | None,
    *,
    continues: bool,
) -> None:
    start = tokens.decoder_start
    if start is None:
        raise ValueError("`decoder_start_token_id` or `bos_token_id` must be set for an encoder-decoder model")
    if isinstance(start, list) and len(start) != batch_size:
        raise ValueError(f"`decoder_start_token_id` must be one id or one per prompt ({batch_size}), got {len(start)}")
    if min(start if isinstance(start, list) else [start]) < 0:
        raise ValueError(f"`decoder_start_token_id` must be an id >= 0, which a decoder can start from, got {start}")
    # If the encoder has another main input, `input_ids` are the decoder's.
    name = "decoder_input_ids" if "decoder_input_ids" in kwargs or main_name == "input_ids" else "input_ids"
    ids = kwargs.get(name)
    mask = kwargs.get("decoder_attention_mask")
    if ids is not None:
        ids = kwargs[name] = check_ids(name, ids, device, rows=batch_size)
    if mask is not None:
        read = ids if ids is not None else torch.empty((batch_size, 1), device="meta")
        check_mask("decoder_attention_mask", mask, read, read_name="decoder_input_ids", continues=continues)


def _check_cache(
    model: TransformersModel, config: GenerationConfig, kwargs: Mapping[str, object], name: str | None
) -> None:
    """Raises, before any forward, for a cache that the call cannot make or continue.

    name: the caller's name for the cache in `kwargs`, or None.
    """
    kind = config.cache_implementation
    if name is not None:
        if isinstance(given_cache(kwargs), tuple):
            raise TypeError(f"`{name}` must be a cache object, got tuple")
        check_continues(name, given_cache(kwargs))
        if kind is not None:
            raise ValueError(f"`cache_implementation`={kind!r} and `{name}` exclude each other")
    if kind is not None and kind.startswith("offloaded") and execution_device(model).type == "cpu":
        raise ValueError(f"`cache_implementation`={kind!r} moves a cache to the CPU, where the model is already")
    if kind == "quantized" and config.use_cache is not False:
        if model.config.is_encoder_decoder or not model._supports_default_dynamic_cache():
            raise ValueError(f"`cache_implementation`='quantized' is not supported by {type(model).__name__}")
        backend = (config.cache_config or {}).get("backend", "quanto")
        needs = quantizers()
        if backend not in needs:
            raise ValueError(f"`cache_config`: `backend` must be one of {list(needs)}, got {backend!r}")
        module, package = needs[backend] or ("torch", "torch")
        if importlib.util.find_spec(module.partition(".")[0]) is None or importlib.util.find_spec(module) is None:
            raise ImportError(f"`cache_implementation`='quantized' with `backend`={backend!r} needs {package}")
    if config.prefill_chunk_size is not None and config.use_cache is False:
        raise ValueError(f"`prefill_chunk_size`={config.prefill_chunk_size} needs a cache, got `use_cache`=False")


def _check_pieces(kwargs: Mapping[str, object], names: HookNames, size: int) -> None:
    """NotImplementedError for inputs that only the model can split by position, images for example."""
    cut = (*GrowingInputs.KINDS, "inputs_embeds", *names.arguments)
    whole = [name for name, value in kwargs.items() if isinstance(value, Tensor) and name not in cut]
    if whole:
        raise NotImplementedError(
            f"`prefill_chunk_size`={size} cannot cut up `{whole[0]}`; only prompts of text can be split"
        )


def unseen_length(model: TransformersModel, prompt: Prompt, cache_name: str | None) -> int | None:
    """The number of last positions of the prompt that the caller's cache has not seen; None means all positions.

    A mask of the length of the ids means that the ids are the whole text; a longer one, that they are its end.

    cache_name: the caller's name for the cache.
    Errors: ValueError if the cache has seen the whole text.
    """
    seen = num_positions(given_cache(prompt.model_kwargs))
    if seen is None:
        return None
    embeds = None if model.config.is_encoder_decoder else prompt.model_kwargs.get("inputs_embeds")
    length = prompt.input_ids.shape[1] if embeds is None else embeds.shape[1]
    if embeds is None and (prompt.mask is None or prompt.mask.shape[1] != length):
        return None
    if seen >= length:
        raise ValueError(
            f"`{cache_name}` has seen {seen} positions, so the text must be longer, got {length}; "
            f"to pass only its end, give the `attention_mask` of all of it"
        )
    return length - seen


def check_capacity(prompt: Prompt, max_new_tokens: int, cache_name: str | None) -> None:
    """ValueError if the text needs more positions than the caller's cache of fixed size, named `cache_name`, has."""
    cache = given_cache(prompt.model_kwargs)
    capacities = [
        layer.max_cache_len for layer in layers_of(cache) if hasattr(layer, "max_cache_len") and not layer.is_sliding
    ]
    read = max(prompt.input_ids.shape[1], prompt.embeds_length, 0 if prompt.mask is None else prompt.mask.shape[1])
    if capacities and min(capacities) < read + max_new_tokens - 1:
        raise ValueError(
            f"`{cache_name}` has room for {min(capacities)} positions, the call needs {read + max_new_tokens - 1}"
        )


def encode(
    model: TransformersModel, prompt: Prompt, kwargs: dict[str, Any], config: GenerationConfig
) -> dict[str, Any]:
    """`kwargs` with the outputs of the encoders, one row per prompt, or with a copy of given outputs."""
    given = kwargs.get("encoder_outputs")
    if given is not None:
        return {**kwargs, "encoder_outputs": type(given)(**given)}
    return encoder_hook(model)(prompt.main_input, dict(kwargs), prompt.main_input_name, config)


def add_cache(
    model: TransformersModel,
    kwargs: dict[str, object],
    config: GenerationConfig,
    *,
    mode: GenerationMode,
    batch_size: int,
    max_cache_length: int,
) -> None:
    """Adds a cache to `kwargs`, if the call uses one and `kwargs` has none.

    Sliding windows cannot forget drafts, or the candidates of contrastive search. So for these two all layers store
    all positions. transformers stores static caches on the model; pygen gives each call a new one, and the model does
    not change.
    """
    view: Any = ReadOnlyModel(model, hidden=("_cache", "_previous_max_cache_length"))
    config = copy.copy(config)
    kind, drafts = config.cache_implementation, mode is GenerationMode.ASSISTED_GENERATION
    contrasts = mode is GenerationMode.CONTRASTIVE_SEARCH
    if drafts and kind not in STATIC_CACHES:
        if kind not in (None, "dynamic", "dynamic_full"):
            logger.warning("`cache_implementation`=%r is not used with drafts: the cache is dynamic.", kind)
        config.cache_implementation = None
    stores_everything = given_cache(kwargs) is None and (drafts or contrasts or kind == "dynamic_full")
    # Releases before 5.15 refuse static caches for some modes.
    hook_mode = TransformersMode.GREEDY_SEARCH if drafts or contrasts else TransformersMode(mode.value)
    # Layers move to the device of the states, which is impossible from the meta device.
    with torch.device("cpu"):
        view._prepare_cache_for_generation(config, kwargs, hook_mode, batch_size, max_cache_length)
    if stores_everything:
        make_full(given_cache(kwargs), max_cache_length)
