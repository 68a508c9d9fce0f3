"""The inputs of an assistant, from those of a call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pygen.call.call import Call
from pygen.candidates.vocabulary import readable
from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.adapter import ModelAdapter, adapt, takes
from pygen.models.devices import execution_device
from pygen.models.versions import CACHE_NAMES
from pygen.models.widths import embedded_ids
from pygen.request.prompt import Prompt
from pygen.request.protocols import GenerationSettings
from pygen.request.settings import Lengths, SpecialTokens, resolve_settings, resolve_special_tokens
from pygen.stopping.criteria import Stopping

# These belong to the model, or reach the assistant in another way.
_NOT_PASSED_ON = (
    *CACHE_NAMES,
    "attention_mask",
    "cache_position",
    "decoder_attention_mask",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "encoder_outputs",
    "input_ids",
    "inputs_embeds",
    "logits_to_keep",
    "use_cache",
)
# Settings of the call that drafts do not need, with their neutral values.
_UNSET = {
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_logprobs": False,
    "top_logprobs": None,
    "output_kept": False,
    "kept_limit": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "cache_implementation": None,
    "cache_config": None,
    "prefill_chunk_size": None,
    "guidance_scale": None,
    "use_cache": True,
}


def assistant_call(call: Call, assistant_model: nn.Module) -> Call:
    """`call` with the assistant's model, adapter and prompt, and without streamer and extra outputs."""
    adapter = adapt(assistant_model)
    config = copy.copy(call.config)
    for name, value in _UNSET.items():
        setattr(config, name, value)
    if call.adapter.is_encoder_decoder and not adapter.is_encoder_decoder and takes(adapter, "encoder_outputs", ()):
        # transformers gives a decoder without its encoder a cache that cross-attention cannot use.
        config.use_cache = False
    prompt = _read(
        adapter,
        call.prompt.input_ids,
        call.prompt.mask,
        inputs=_readable_inputs(call.prompt.main_input, assistant_model),
        model_kwargs=_inputs_by_name(call),
        config=config,
        tokens=call.tokens,
        is_encoder_decoder=call.adapter.is_encoder_decoder,
    )
    return dataclasses.replace(
        call,
        adapter=adapter,
        settings=dataclasses.replace(call.settings, config=config),
        prompt=prompt,
        model=assistant_model,
        streamer=None,
    )


def _readable_inputs(inputs: Tensor, assistant_model: nn.Module) -> Tensor:
    """The main input; ids that the assistant has no embedding for become its last one."""
    return inputs if inputs.is_floating_point() else readable(inputs, embedded_ids(assistant_model))


def _inputs_by_name(call: Call) -> dict[str, object]:
    """The caller's inputs without the main one, with the encoder's mask."""
    kwargs = {name: value for name, value in call.settings.model_kwargs.items() if name != call.prompt.main_input_name}
    mask = call.prompt.model_kwargs.get("attention_mask")
    return kwargs | {"attention_mask": mask} if call.adapter.is_encoder_decoder and mask is not None else kwargs


def _read(
    adapter: ModelAdapter,
    input_ids: Tensor,
    mask: Tensor | None,
    *,
    inputs: Tensor | None,
    model_kwargs: Mapping[str, object],
    config: GenerationConfig,
    tokens: SpecialTokens,
    is_encoder_decoder: bool,
) -> Prompt:
    """The assistant's prompt, without inputs that it does not take; the model's check has accepted all of them."""
    if input_ids.shape[1] == 0:
        raise ValueError("`assistant_model` needs a prompt of `input_ids`: it cannot read the `inputs_embeds`")
    if mask is not None:
        mask = mask[:, -input_ids.shape[1] :]
    kwargs = {
        name: value
        for name, value in model_kwargs.items()
        if name not in _NOT_PASSED_ON and takes(adapter, name, value)
    }
    if adapter.is_encoder_decoder:
        kwargs["decoder_input_ids"] = input_ids
        of_encoder = model_kwargs.get("attention_mask") if is_encoder_decoder else mask
        masks = {"attention_mask": of_encoder, "decoder_attention_mask": mask}
        kwargs |= {name: value for name, value in masks.items() if value is not None}
        return adapter.prompt(inputs, kwargs, config, tokens)
    if takes(adapter, "attention_mask", input_ids):
        kwargs["attention_mask"] = torch.ones_like(input_ids) if mask is None else mask
    return adapter.prompt(input_ids, kwargs, config, tokens)


def prompt_of_text(assistant_model: nn.Module, input_ids: Tensor) -> tuple[ModelAdapter, Prompt]:
    """A new adapter of a decoder-only assistant, and its prompt `input_ids` (1, length) without padding.

    Errors: ValueError for an encoder-decoder assistant.
    """
    adapter = adapt(assistant_model)
    if adapter.is_encoder_decoder:
        raise ValueError("`assistant_model` must be decoder-only where the vocabularies differ")
    config = resolve_settings(adapter.generation_config, None, _UNSET).config
    prompt = _read(
        adapter,
        input_ids,
        None,
        inputs=None,
        model_kwargs={},
        config=config,
        tokens=resolve_special_tokens(config),
        is_encoder_decoder=False,
    )
    return adapter, prompt


def call_of_arguments(
    input_ids: Tensor,
    assistant_model: nn.Module,
    generation_config: GenerationSettings,
    model_kwargs: dict[str, Any],
    inputs_tensor: Tensor | None,
    logits_processor: Sequence[Callable[..., Tensor]] | None,
) -> Call:
    """The assistant's call, from the arguments that transformers passes to a candidate generator."""
    adapter = adapt(assistant_model)
    device = execution_device(assistant_model)
    settings = resolve_settings(adapter.generation_config, generation_config, _UNSET)
    config, tokens = settings.config, resolve_special_tokens(settings.config)
    input_ids = input_ids.to(device)
    is_encoder_decoder = "encoder_outputs" in model_kwargs
    mask = model_kwargs.get("decoder_attention_mask" if is_encoder_decoder else "attention_mask")
    prompt = _read(
        adapter,
        input_ids,
        None if mask is None else mask.to(device),
        inputs=None if inputs_tensor is None else inputs_tensor.to(device),
        model_kwargs={name: value for name, value in model_kwargs.items() if value is not None},
        config=config,
        tokens=tokens,
        is_encoder_decoder=is_encoder_decoder,
    )
    if is_encoder_decoder:
        add_encoder_outputs(adapter, prompt, model_kwargs["encoder_outputs"])
    max_new_tokens = config.max_new_tokens or 0
    if config.max_length is not None:
        max_new_tokens = config.max_length - input_ids.shape[1]
    minimum = max((config.min_length or 0) - input_ids.shape[1], 0)
    return Call(
        adapter=adapter,
        settings=settings,
        mode=GenerationMode.ASSISTED_GENERATION,
        tokens=tokens,
        prompt=prompt,
        lengths=Lengths(max_new_tokens, minimum),
        num_copies=1,
        model=assistant_model,
        logits_processor=None if logits_processor is None else list(logits_processor),
        stopping=Stopping(max_new_tokens, tokens.eos, None, (), False),
    )


def add_encoder_outputs(adapter: ModelAdapter, prompt: Prompt, encoder_outputs: object) -> None:
    """Gives the output of the model's encoder to a decoder-only assistant that takes it."""
    if adapter.is_encoder_decoder or encoder_outputs is None:
        return
    if takes(adapter, "encoder_outputs", encoder_outputs):
        prompt.model_kwargs["encoder_outputs"] = encoder_outputs
