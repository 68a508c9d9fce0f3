"""Models that read texts in pieces, over the static cache and transformers' dynamic cache side by side."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pygen.graph.static_cache import StaticCache
from pygen.models import cache as verbs
from tests.generate.models import encoder_decoder, hf_model

# Left padding: three prompts of 7, 4 and 2 tokens.
VISIBLE = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 5 + [1] * 2])
PROMPTS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
CAPACITY = 24

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.35,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# Windows that end inside the prompt, after it, and beyond the text.
WINDOWED: dict[str, Callable[[], Any]] = {
    "mistral 4": lambda: transformers.MistralConfig(**SIZES, sliding_window=4),
    "mistral 9": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "mistral 40": lambda: transformers.MistralConfig(**SIZES, sliding_window=40),
    "qwen2 mixed": lambda: transformers.Qwen2Config(
        **SIZES, sliding_window=4, use_sliding_window=True, max_window_layers=1
    ),
    "gemma2 mixed": lambda: transformers.Gemma2Config(**SIZES, sliding_window=4, layer_types=MIXED),
    "gemma3 mixed": lambda: transformers.Gemma3TextConfig(**SIZES, sliding_window=5, layer_types=MIXED),
    # The last layers share keys and values of earlier ones.
    "gemma3n shared": lambda: transformers.Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 5, "intermediate_size": [48] * 5},
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=60,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 5,
        altup_num_inputs=2,
    ),
}
DECODERS = ["llama", "gpt2", "qwen2", *WINDOWED]
PAIRS = ["t5", "bart", "whisper"]
ATTENTIONS = ["eager", "sdpa"]


@functools.cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    if family in PAIRS:
        model = copy.deepcopy(encoder_decoder(family))
    elif family in WINDOWED:
        torch.manual_seed(len(family))
        model = transformers.AutoModelForCausalLM.from_config(WINDOWED[family]()).eval()
    else:
        model = copy.deepcopy(hf_model(family))
    # Gemma2 lost SDPA after 5.6.1.
    model.set_attn_implementation(attention if model._supports_sdpa else "eager")
    return model


class Reader:
    """A model that reads texts in pieces over one cache."""

    def __init__(self, model: Any, cache: Any, source: Tensor | None = None) -> None:
        self.model, self.cache, self.source = model, cache, source
        self.visible = torch.ones(0, 0, dtype=torch.int64)

    def read(self, ids: Tensor, visible: Tensor | None = None) -> Tensor:
        """Returns the scores of the next token, (rows, vocab_size)."""
        visible = torch.ones_like(ids) if visible is None else visible
        self.visible = torch.cat([self.visible.view(len(ids), -1), visible], dim=1)
        inputs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if self.source is None:
            positions = (self.visible.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs |= {"input_ids": ids, "attention_mask": self.visible, "position_ids": positions}
        else:
            encoded = BaseModelOutput(last_hidden_state=cast(Any, self.source))
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": self.visible, "encoder_outputs": encoded}
        logits: Tensor = self.model(**inputs).logits
        return logits[:, -1]

    def expand(self, copies: int) -> None:
        verbs.expand(self.cache, copies)
        self.visible = self.visible.repeat_interleave(copies, dim=0)
        if self.source is not None:
            self.source = self.source.repeat_interleave(copies, dim=0)


class Readers:
    """The static cache and transformers' dynamic cache side by side; every step asserts equal scores."""

    def __init__(self, family: str, attention: str = "sdpa", *, rows: int = 3, capacity: int = CAPACITY) -> None:
        self.model = model_of(family, attention)
        self.static = StaticCache.for_model(self.model, rows=rows, capacity=capacity)
        theirs: Any = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        source = None
        if family in PAIRS:
            theirs = EncoderDecoderCache(DynamicCache(), DynamicCache())
            source = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
        self.both = [Reader(self.model, cache, source) for cache in (self.static, theirs)]
        self.length = 0

    def read(self, ids: Tensor, visible: Tensor | None = None) -> Tensor:
        """Returns the most likely tokens, (rows, 1)."""
        ours, theirs = (reader.read(ids, visible) for reader in self.both)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert ours.argmax(-1).equal(theirs.argmax(-1))
        self.length += ids.shape[1]
        assert self.static.length == self.length == int(self.static.device_length)
        return ours.argmax(-1)[:, None]

    def go_on(self, ids: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            ids = self.read(ids)
        return ids

    def buffers(self) -> list[Tensor]:
        own: Any = getattr(self.static, "self_attention_cache", self.static)
        return [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]
