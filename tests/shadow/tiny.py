"""Builds models with two narrow layers from the config of any architecture."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCAB_SIZE = 64
# Small sizes, under all names that configs have for them. A config takes those that it knows.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.35,
    "init_std": 0.35,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "lru_width", "max_source_positions"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "state_size": 4,
    "dropout": 0.0,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(config_class: Any, **overrides: Any) -> Any:
    """Returns a `config_class` with small sizes, in sub-configs too. overrides: fields, or dicts for sub-configs."""
    default = config_class()
    fields = {name: size for name, size in _SIZES.items() if _takes(default, name, size)}
    if "kv_lora_rank" in fields:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields |= {name: token for name, token in _TOKENS.items() if hasattr(default, name)}
    for name, part in config_class.sub_configs.items():
        given = overrides.get(name, {})
        if isinstance(given, dict) and (
            name in overrides or name == "text_config" or part is not transformers.AutoConfig
        ):
            part = type(getattr(default, name)) if part is transformers.AutoConfig else part
            overrides[name] = tiny_config(part, **given)
    return config_class(**fields | overrides)


def _takes(config: Any, name: str, size: Any) -> bool:
    try:
        if getattr(config, name, None) is None:
            return False
        setattr(config, name, size)
    except (AttributeError, NotImplementedError):  # a property
        return False
    except RuntimeError:  # a per-layer field, set for all layers
        return True
    return True


def built(model: str, seed: int = 0, **fields: Any) -> Any:
    """Returns a random model of the class with the name `model`."""
    model_class = getattr(transformers, model)
    torch.manual_seed(seed)
    return model_class._from_config(tiny_config(model_class.config_class, **fields), attn_implementation="eager").eval()
