"""transformers models with an almost free forward, so that a step measures the loop around it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class StubConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "pygen_stub"

    def __init__(self, vocab_size: int = 32, layers: int = 1, heads: int = 1, head_dim: int = 1, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.num_hidden_layers = layers
        self.num_attention_heads = heads
        self.head_dim = head_dim
        self.hidden_size = heads * head_dim
        super().__init__(**kwargs)


class Stub(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = StubConfig

    def __init__(self, config: StubConfig) -> None:
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))


class FixedLogits(Stub):
    """Returns the same tensor in every forward."""

    def __init__(self, config: StubConfig) -> None:
        super().__init__(config)
        logits: Any = torch.randn(1, 1, config.vocab_size)
        self.output = CausalLMOutputWithPast(logits=logits)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        return self.output


class CachedLogits(Stub):
    """Fills a cache of a real model's size and selects its logits by the cache's contents.

    A token's keys hold its id. The sum of the first keys up to a position selects its row of logits, so that a
    wrongly reordered cache changes the tokens.
    """

    TABLE_ROWS = 64

    def __init__(self, config: StubConfig, spread: float = 3.0) -> None:
        super().__init__(config)
        self.table = torch.randn(self.TABLE_ROWS, config.vocab_size) * spread

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 1,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        config = self.config
        shape = (*input_ids.shape, config.num_attention_heads, config.head_dim)
        keys = input_ids.float()[..., None, None].expand(shape).transpose(1, 2)
        cache = DynamicCache() if past_key_values is None else past_key_values
        for layer in range(config.num_hidden_layers):
            seen, _values = cache.update(keys, keys, layer)
        sums = seen[:, 0, :, 0].cumsum(1)[:, -logits_to_keep:]
        logits: Any = self.table[sums.long() % self.TABLE_ROWS]
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)
