"""Which models a cache of fixed size can serve, and why it cannot serve the others."""

from __future__ import annotations

from typing import Any

from pygen.backends import BackendError

_HELD = ("full_attention", "sliding_attention")
_ATTENTIONS = ("eager", "sdpa")
# Kinds of cache that a call can ask for by name.
_OTHER_CACHES = {
    "quantized": "keeps keys and values in another form",
    "offloaded": "moves keys and values between devices",
    "offloaded_static": "moves keys and values between devices",
}


class CacheRefused(BackendError):
    """A cache of fixed size cannot serve this model, or not in the way that is asked for; the message says why."""


def layer_kinds(config: Any) -> list[str]:
    """The kind of every decoder layer that has its own keys and values, in transformers' words.

    A config that lists no `layer_types` has layers of one kind.
    """
    config = config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        if getattr(config, "sliding_window", None) is not None:
            kind = "sliding_attention"
        elif getattr(config, "attention_chunk_size", None) is not None:
            kind = "chunked_attention"
        else:
            kind = "full_attention"
        # T5's num_hidden_layers are those of its encoder.
        kinds = [kind] * (getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)
    return list(kinds[: len(kinds) - (getattr(config, "num_kv_shared_layers", None) or 0)])


def refusal(model: Any, cache_implementation: str | None = None) -> str | None:
    """Why no static cache can serve `model`, a transformers model, in one sentence; None where one can.

    `cache_implementation`: the kind of cache that the call asks for, if it does.
    """
    name = type(model).__name__
    if cache_implementation in _OTHER_CACHES:
        return f"`cache_implementation`={cache_implementation!r} {_OTHER_CACHES[cache_implementation]}"
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return f"{name} is not a model of transformers"
    reason = layers_refusal(model)
    if reason is not None:
        return reason
    config = model.config.get_text_config(decoder=True)
    kinds = layer_kinds(model.config)
    if model.config.model_type == "t5gemma2":
        # Its masks of two caches are joined to one, and on 5.6.1 not where they were made before the forward.
        return f"{name} attends to its own text and the encoder's in one"
    if model.config.is_encoder_decoder and "sliding_attention" in kinds and _cache_is_default(model):
        return f"transformers keeps only a window of the encoder's output for {name}"
    if getattr(config, "add_cross_attention", False) and not model.config.is_encoder_decoder:
        return f"{name} attends to an encoder that is not its own"
    if not getattr(model, "_can_compile_fullgraph", False):
        return f"the forward of {name} does not take a cache of fixed size (`_can_compile_fullgraph` is False)"
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if attention not in _ATTENTIONS:
        return f"`attn_implementation`={attention!r} is not {' or '.join(_ATTENTIONS)}"
    devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        return f"the weights of {name} are spread over {', '.join(devices)}"
    return None


def layers_refusal(model: Any) -> str | None:
    """Why a cache of keys and values in columns cannot hold what the layers of `model` keep; None where it can."""
    name = type(model).__name__
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return f"{name} keeps a cache of its own class"
    others = [kind for kind in layer_kinds(model.config) if kind not in _HELD]
    if others:
        return f"{name} has layers of kind {others[0]!r}; only full and sliding-window attention can be held"
    return None


def _cache_is_default(model: Any) -> bool:
    from pygen.models.transformers_inputs import is_default

    return is_default(model, "_prepare_cache_for_generation")
