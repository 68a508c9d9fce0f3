"""The models of `bench_gpu_generate`, with random weights, and the bytes that their decoding steps must read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

DTYPE = torch.bfloat16
Made = tuple[Any, Any]  # model class and config
# Sizes of a rehearsal. This GPT-2 has too few positions for a prompt of 96 tokens.
_SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 509, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "llama": {"vocab_size": 509, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {"vocab_size": 509, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2},
    "t5": {"vocab_size": 509, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
}  # fmt: skip


def _gpt2(**small: Any) -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel, GPT2Config(**small)


def _llama(**small: Any) -> Made:
    """The shape of Llama 3.2 1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM, LlamaConfig(**{**shape, **small})


def _qwen2(**small: Any) -> Made:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    return Qwen2ForCausalLM, Qwen2Config(**{**shape, **small})


def _t5(**small: Any) -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    shape: dict[str, Any] = {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    return T5ForConditionalGeneration, T5Config(**{**shape, **small})


MODELS: dict[str, tuple[str, Callable[..., Made]]] = {
    "gpt2": ("GPT-2 124M", _gpt2),
    "llama": ("Llama 1B", _llama),
    "qwen2": ("Qwen2 0.5B", _qwen2),
    "t5": ("T5-base", _t5),
}


def config_of(key: str, small: bool) -> Any:
    return MODELS[key][1](**_SMALL[key] if small else {})[1]


@functools.cache
def load(key: str, small: bool, device: torch.device) -> Any:
    """Returns a bfloat16 model without an end token."""
    kind, config = MODELS[key][1](**_SMALL[key] if small else {})
    torch.manual_seed(0)
    with torch.device(device):
        model = kind(config).to(DTYPE).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def positions(config: Any) -> int | None:
    """Returns the maximum length of prompt and text; None if only memory bounds it."""
    if config.is_encoder_decoder:
        return None
    return int(config.max_position_embeddings)


def weight_bytes(model: Any) -> int:
    """Returns the bytes of weights that a decoding step reads: each weight once, except

    - the encoder, and the projections of its output, whose keys and values are cached;
    - embedding tables, of which a step reads one row per token. A step reads a table tied to the LM head whole.
    """
    scoring = model.get_output_embeddings().weight
    root = model.get_decoder() if model.config.is_encoder_decoder else model
    tables = {id(module.weight) for module in root.modules() if isinstance(module, nn.Embedding)}
    read = {id(scoring): scoring}
    for name, parameter in root.named_parameters():
        projection = any(f"EncDecAttention.{part}." in name for part in "kv")
        if not projection and id(parameter) not in tables:
            read[id(parameter)] = parameter
    return sum(parameter.numel() * parameter.element_size() for parameter in read.values())


def cache_bytes(model: Any, rows: int, prompt: int, new_tokens: int) -> int:
    """Returns the bytes of keys and values that a step reads, averaged over a call."""
    config = model.config.get_text_config(decoder=True)
    layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # If an encoder reads the prompt, only the start token precedes the first generated token.
    own = 1 if model.config.is_encoder_decoder else prompt
    crossed = prompt if model.config.is_encoder_decoder else 0
    in_use = own + (new_tokens - 1) / 2 + crossed
    return int(2 * layers * heads * head_dim * rows * in_use * model.dtype.itemsize)
