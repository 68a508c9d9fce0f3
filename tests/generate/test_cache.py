"""The cache verbs, and which caches they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig, MistralForCausalLM, StaticCache

from pygen import cache as verbs
from pygen.generate import generate


def filled(config: Any, length: int = 3) -> DynamicCache:
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        states = torch.arange(2 * length, dtype=torch.float32).view(2, 1, length, 1)
        cache.update(states, states + layer, layer)
    return cache


def test_expand_and_crop() -> None:
    cache = filled(LlamaConfig(num_hidden_layers=2))
    assert verbs.can_expand(cache) and verbs.can_crop(cache)
    verbs.expand(cache, 2)
    assert cache.layers[1].keys[:, 0, :, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    verbs.crop(cache, 0)
    assert cache.get_seq_length() == 3
    verbs.crop(cache, 1)
    assert cache.get_seq_length() == 2
    assert cache.layers[0].values[:, 0, :, 0].tolist() == [[0, 1], [0, 1], [3, 4], [3, 4]]


def test_an_empty_cache_without_layers_yet() -> None:
    assert verbs.can_expand(DynamicCache())
    assert not verbs.can_crop(DynamicCache())


def test_sliding_layers_expand_but_do_not_crop() -> None:
    cache = filled(MistralConfig(num_hidden_layers=1, sliding_window=4))
    assert verbs.can_expand(cache) and not verbs.can_crop(cache)


def test_other_caches_do_neither() -> None:
    recurrent = SimpleNamespace(
        layers=[SimpleNamespace(update_recurrent_state=None, batch_repeat_interleave=None, crop=None)],
        batch_repeat_interleave=None,
        crop=None,
    )
    for cache in (StaticCache(LlamaConfig(num_hidden_layers=1), max_cache_len=4), object(), None, ((1, 2),)):
        assert not verbs.can_expand(cache)
    for cache in (recurrent, object(), None, ((1, 2),)):
        assert not verbs.can_crop(cache)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_sliding_windows_as_transformers(settings: dict[str, Any]) -> None:
    config = MistralConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    ids = torch.randint(0, 60, (2, 6))
    torch.manual_seed(1)
    expected = model.generate(ids, max_new_tokens=8, **settings)
    torch.manual_seed(1)
    assert torch.equal(generate(model, ids, max_new_tokens=8, **settings), expected)
