"""Models with the same weights in every release of transformers, and the calls to record with them."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor

VOCAB_SIZE = 61
_PADDED = [[5, 6, 7, 8, 9, 20], [0, 0, 0, 3, 40, 11], [0, 12, 9, 30, 31, 2]]
_MASK = [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
_SOURCE = [[5, 6, 7, 8, 1, 2, 3], [9, 3, 40, 1, 0, 0, 0]]
_SOURCE_MASK = [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
_EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
_BATCH: dict[str, Any] = {"input_ids": _PADDED, "attention_mask": _MASK}
_ENCODED: dict[str, Any] = {"input_ids": _SOURCE, "attention_mask": _SOURCE_MASK}
_DECODED = {"decoder_input_ids": [[1, 7, 8], [0, 1, 9]], "decoder_attention_mask": [[1, 1, 1], [0, 1, 1]]}
_FOUR = {"penalty_alpha": 0.6, "top_k": 4}
_PENALTIES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3}

# {name: (family, settings and inputs)}; lists become tensors.
CONTRASTIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "left padding": ("llama", {**_BATCH, **_FOUR}),
    "one row, one after the other": ("llama", {"input_ids": [[5, 6, 7]], **_FOUR, "low_memory": True}),
    "all outputs": ("llama", {**_BATCH, **_FOUR, **_EVERYTHING, "max_new_tokens": 5}),
    "ends at different steps": ("llama", {**_BATCH, **_FOUR, "eos_token_id": [8, 17, 33]}),
    "tied, with processors": ("gpt2", {**_BATCH, "penalty_alpha": 0.3, "top_k": 6, **_PENALTIES}),
    "almost greedy": ("gpt2", {**_BATCH, "penalty_alpha": 0.01, "top_k": 2}),
    "similarity alone": ("gpt2", {**_BATCH, "penalty_alpha": 1.0, "top_k": 3}),
    "sliding windows": ("mistral", {**_BATCH, **_FOUR}),
    "an encoder": ("bart", {**_ENCODED, **_FOUR}),
    "a decoder's prompts": ("bart", {**_ENCODED, **_DECODED, **_FOUR}),
    "all outputs of a decoder": ("bart", {**_ENCODED, **_FOUR, **_EVERYTHING, "max_new_tokens": 4}),
    "relative positions": ("t5", {**_ENCODED, **_FOUR, "repetition_penalty": 1.2}),
}
_ROW: dict[str, Any] = {"input_ids": [[5, 6, 7, 8, 9, 20]], "repetition_penalty": 1.2}
# transformers chooses one layer for a whole batch, pygen one per row. So cases with several rows offer one layer.
DOLA: dict[str, tuple[str, dict[str, Any]]] = {
    "low": ("llama", {**_ROW, "dola_layers": "low"}),
    "high": ("llama", {**_ROW, "dola_layers": "high"}),
    "layers, some beyond the last": ("llama", {**_ROW, "dola_layers": [1, 2, 5, 6, 9]}),
    "one layer, left padding": ("llama", {**_BATCH, "dola_layers": [3], "eos_token_id": [8, 17, 33]}),
    "all outputs": ("llama", {**_BATCH, **_EVERYTHING, "dola_layers": [2], "max_new_tokens": 4}),
    "tied, low": ("gpt2", {**_ROW, "dola_layers": "low", "no_repeat_ngram_size": 2}),
    "tied, high": ("gpt2", {**_ROW, "dola_layers": "high", "repetition_penalty": 1.0}),
    "draws": ("llama", {**_ROW, "dola_layers": "high", "do_sample": True, "temperature": 1.5, "top_k": 8}),
    "draws of a tied model": ("gpt2", {**_ROW, "dola_layers": "low", "do_sample": True, "top_p": 0.9}),
}
RECORDINGS = {"contrastive": CONTRASTIVE, "dola": DOLA}


@functools.cache
def seeded_model(family: str) -> Any:
    """Returns a small model without special tokens. Its weights do not depend on transformers' initialisation."""
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    decoder: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "attn_implementation": "eager",
        "tie_word_embeddings": False,
        **tokens,
    }
    if family == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**decoder))
    elif family == "mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**decoder, sliding_window=8))
    elif family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB_SIZE}
        sizes["attn_implementation"] = "eager"
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens))
    elif family == "bart":
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**_bart(), **tokens))
    else:
        tokens |= {"decoder_start_token_id": 1, "attn_implementation": "eager"}
        sizes = {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens))
    _fill(model)
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=0, decoder_start_token_id=1 if model.config.is_encoder_decoder else None
    )
    return model.eval()


def arguments(asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `generate`."""
    tensors = {name: torch.tensor(value) for name, value in asked.items() if name.endswith(("ids", "mask"))}
    return {"max_new_tokens": 16, "do_sample": False, **asked, **tensors}


def recorded(output: Any) -> dict[str, Any]:
    """Returns an output's tokens, and shapes and sums of all per-step fields."""
    if isinstance(output, Tensor):
        return {"sequences": output.tolist()}
    result: dict[str, Any] = {"sequences": output.sequences.tolist()}
    for name, value in output.items():
        if isinstance(value, tuple):
            tensors = list(_tensors(value))
            result[name] = [[list(t.shape), round(float(t[t.isfinite()].sum()), 3)] for t in tensors]
    result["cache_length"] = output.past_key_values.get_seq_length()
    return result


def fingerprint(family: str) -> float:
    """Returns a number that is equal for models with the same weights and computations."""
    model, ids = seeded_model(family), torch.tensor([[5, 6, 7, 8]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return round(float(model(input_ids=ids, **more).logits.abs().sum()), 2)


def _fill(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))


def _bart() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
        "attn_implementation": "eager",
    }


def _tensors(value: Any) -> Any:
    for item in value:
        if isinstance(item, Tensor):
            yield item
        else:
            yield from _tensors(item)
