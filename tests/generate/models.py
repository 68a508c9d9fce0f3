"""Small models for the generation tests: random transformers built from configs, and plain modules."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

VOCAB_SIZE = 101
FAMILIES = ("llama", "gpt2", "qwen2")
ENCODER_DECODERS = ("t5", "bart", "whisper")

# With this standard deviation a random model's scores spread like those of a trained one.
_SPREAD = 0.35


@functools.cache
def hf_model(family: str) -> Any:
    """Returns a random model of two layers, without special tokens, so that every call chooses its own."""
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "initializer_range": _SPREAD, **tokens}
    decoder: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(FAMILIES.index(family))
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**decoder, **sizes))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**decoder, **sizes))
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **sizes))
    return model.eval()


@functools.cache
def encoder_decoder(family: str) -> Any:
    """Returns a random encoder-decoder with two layers each and no special tokens; "whisper" reads 8 x 40 features."""
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    tokens["decoder_start_token_id"] = 1
    layers: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "init_std": _SPREAD,
        **tokens,
    }
    torch.manual_seed(10 + ENCODER_DECODERS.index(family))
    if family == "bart":
        model: Any = BartForConditionalGeneration(BartConfig(**layers, forced_eos_token_id=None))
    elif family == "whisper":
        sources: dict[str, Any] = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64}
        model = WhisperForConditionalGeneration(WhisperConfig(**layers, **sources))
    else:
        sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        # T5 does not scale its queries down, so it needs a smaller spread for the same scores.
        model = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB_SIZE, initializer_factor=2.0, **sizes, **tokens))
    model.generation_config = GenerationConfig()
    return model.eval()


class TableModel(nn.Module):
    """Looks up the scores of the next token by the last one, so that one can work out its text by hand."""

    table: Tensor
    generation_config: Any

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor) -> Tensor:
        self.calls.append(tuple(input_ids.shape))
        return self.table[input_ids]


def counting_table(vocab_size: int = 10) -> TableModel:
    """Returns a table in which i + 1 follows i, with i + 2 as the runner-up."""
    table = torch.full((vocab_size, vocab_size), -5.0)
    ids = torch.arange(vocab_size)
    table[ids, (ids + 1) % vocab_size] = 5.0
    table[ids, (ids + 2) % vocab_size] = 3.0
    return TableModel(table)


class SumCache:
    """A cache of an unguessable shape: running sums over time, with time as the last dimension."""

    def __init__(self, total: Tensor, length: int) -> None:
        self.total = total
        self.length = length


class CachedModel(nn.Module):
    """A bag-of-embeddings language model that carries its running sum in a cache and honours mask and positions."""

    generation_config: Any

    def __init__(self, vocab_size: int = 23, width: int = 12, returns: str = "tuple") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(64, width)
        self.head = nn.Linear(width, vocab_size)
        self.returns = returns
        self.lengths: list[int] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SumCache | None = None,
        use_cache: bool = False,
    ) -> Any:
        self.lengths.append(input_ids.shape[1])
        assert attention_mask is not None and position_ids is not None
        assert position_ids.shape == input_ids.shape
        seen = input_ids.shape[1] + (past_key_values.length if past_key_values is not None else 0)
        assert attention_mask.shape == (input_ids.shape[0], seen)
        hidden = torch.tanh(self.embedding(input_ids) + self.positions(position_ids))
        hidden = hidden * attention_mask[:, -input_ids.shape[1] :, None]
        total = hidden.cumsum(1)
        if past_key_values is not None:
            total = total + past_key_values.total[:, None]
        logits = self.head(total)
        cache = SumCache(total[:, -1], seen) if use_cache else None
        if self.returns == "tuple":
            return logits, cache
        if self.returns == "dict":
            return {"logits": logits, "past_key_values": cache}
        return logits[:, -1]


@functools.cache
def cached_model(returns: str = "tuple") -> CachedModel:
    torch.manual_seed(7)
    return CachedModel(returns=returns).eval()
