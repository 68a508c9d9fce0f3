"""Small random models of several architectures, with scores spread as widely as those of a trained one."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

VOCAB_SIZE = 101
POSITIONS = 128
# The window of sliding layers: shorter than most texts.
WINDOW = 9

_SPREAD = 0.35
_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
_BLOOM: dict[str, Any] = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
_OPT: dict[str, Any] = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "word_embed_proj_dim": 32,
}
_SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
_MIXED: dict[str, Any] = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _DECODER),
    "gpt2": ("GPT2", _GPT2),
    "qwen2": ("Qwen2", _DECODER),
    "gemma3": ("Gemma3", {**_DECODER, **_MIXED}),
    "mistral": ("Mistral", {**_DECODER, **_SLIDING}),
    "bloom": ("Bloom", _BLOOM),
    "opt": ("OPT", _OPT),
    "phi": ("Phi", _DECODER),
    "mixtral": ("Mixtral", {**_DECODER, **_EXPERTS}),
}
FAMILIES = tuple(_SIZES)


@functools.cache
def small_model(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """Returns a random model of two layers without special tokens.

    In float64 the rounding of a forward, which depends on the rows beside it, is far below the steps of float32 scores.
    """
    prefix, sizes = _SIZES[family]
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    name = f"{prefix}TextConfig" if family == "gemma3" else f"{prefix}Config"
    spread = {"init_std" if family == "opt" else "initializer_range": _SPREAD}
    config = getattr(transformers, name)(vocab_size=VOCAB_SIZE, **spread, **sizes, **tokens)
    kind = "GPT2LMHeadModel" if family == "gpt2" else f"{prefix}ForCausalLM"
    torch.manual_seed(FAMILIES.index(family))
    model = getattr(transformers, kind)(config)
    model.generation_config = GenerationConfig()
    if family == "mixtral":
        # The grouped product takes no float64.
        model.set_experts_implementation("eager")
    return model.to(dtype).eval()
