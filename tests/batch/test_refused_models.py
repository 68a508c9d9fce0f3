"""Models whose rows cannot come and go are refused by name, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import pygen
from tests.batch.models import VOCAB_SIZE
from tests.generate.models import counting_table, encoder_decoder

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _mamba() -> Any:
    config = transformers.MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config).eval()


def _chunked() -> Any:
    config = transformers.Llama4TextConfig(
        **_SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8
    )
    return transformers.Llama4ForCausalLM(config).eval()


def _linear_attention() -> Any:
    config = transformers.Qwen3NextConfig(
        **_SIZES,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
    )
    return transformers.Qwen3NextForCausalLM(config).eval()


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "encoder-decoder": (lambda: encoder_decoder("t5"), "T5ForConditionalGeneration is an encoder-decoder"),
    "recurrent": (_mamba, "MambaForCausalLM"),
    "chunked": (_chunked, "Llama4ForCausalLM has layers of kind 'chunked_attention'"),
    "linear attention": (_linear_attention, "Qwen3NextForCausalLM"),
    "a module": (counting_table, "TableModel is not a generation model of transformers"),
}


@pytest.mark.parametrize("start", [lambda model: pygen.generate_batch(model, [[1]]), pygen.Engine])
@pytest.mark.parametrize("name", MODELS)
def test_refused_by_name(name: str, start: Callable[[Any], Any]) -> None:
    make, words = MODELS[name]
    with pytest.raises(NotImplementedError, match=words) as caught:
        start(make())
    assert "its rows cannot come and go" in str(caught.value) and "`pygen.generate` runs it" in str(caught.value)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_longest_row(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"original_max_position_embeddings": 32, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = transformers.LlamaConfig(
        **_SIZES, max_position_embeddings=32 if kind == "dynamic" else 128, rope_parameters=rope
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    fits = {"input_ids": [1] * 29, "max_new_tokens": 4}
    results = [*pygen.generate_batch(model, [[1, 2], fits, {**fits, "max_new_tokens": 5}], max_new_tokens=3, rows=3)]
    assert [result.finish_reason for result in results] == ["length", "length", "error"]
    with pytest.raises(NotImplementedError, match="beyond 32 positions, where the model's rotary embeddings depend"):
        raise results[2].error or AssertionError
    for result in results[:2]:
        alone = pygen.generate(model, torch.tensor([result.prompt_ids]), max_new_tokens=len(result.token_ids))
        assert alone[0].tolist() == result.prompt_ids + result.token_ids  # type: ignore[index, call-overload, union-attr]
