"""A beam search returns the cache of its sequences: a call continues from it as without it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from pygen.generate import generate
from tests.generate.models import VOCAB_SIZE, encoder_decoder, hf_model
from tests.generate.test_beams import TupleCacheModel
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[0, 6, 7], [8, 9, 10]])
CALL: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "pad_token_id": 0}
DICT: dict[str, Any] = {"return_dict_in_generate": True}
# Half of the vocabulary ends a hypothesis.
ENDS: dict[str, Any] = {"eos_token_id": [*range(2, 50)]}
SEARCHES: dict[str, dict[str, Any]] = {
    "search": {},
    "ends": ENDS,
    "early": {**ENDS, "early_stopping": True},
    "drawn": {"do_sample": True, "seed": 2, **ENDS},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, **ENDS},
    "constraints": {"force_words_ids": [[70]], **ENDS},
}


def longer(sequences: Tensor) -> Tensor:
    return torch.cat([sequences, torch.tensor([[53, 54]] * len(sequences))], dim=1)


def goes_on(model: Any, output: Any, **inputs: Any) -> Tensor:
    """Returns the model's next tokens; asserts that they are equal with and without the cache of `output`."""
    name = "decoder_input_ids" if inputs else "inputs"
    inputs |= {name: longer(output.sequences), "max_new_tokens": 5, "pad_token_id": 0}
    whole = generate_tokens(model, **inputs)
    resumed = generate_tokens(model, **inputs, past_key_values=output.cache)
    assert torch.equal(resumed, whole)
    return whole


@pytest.mark.parametrize("returned", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_a_call_continues_from_the_returned_rows(settings: dict[str, Any], family: str, returned: int) -> None:
    model = hf_model(family)
    output = generate_output(model, IDS, num_return_sequences=returned, **{**CALL, **settings}, **DICT)
    assert {len(layer.keys) for layer in output.cache.layers} == {2 * returned} == {len(output.sequences)}
    goes_on(model, output)


def test_all_that_full_rows_have_seen_is_kept() -> None:
    output = generate_output(hf_model("llama"), IDS, num_return_sequences=3, **CALL, **DICT)
    assert output.cache.get_seq_length() == 3 + 6 - 1


def test_rows_are_cut_to_the_shortest() -> None:
    output = generate_output(hf_model("llama"), IDS, num_return_sequences=3, **CALL, **ENDS, **DICT)
    shortest = int((output.beam_indices >= 0).sum(1).min())
    assert shortest < 6 and 3 <= output.cache.get_seq_length() <= 3 + shortest - 1


@pytest.mark.parametrize("settings", [{}, ENDS], ids=["full", "ends"])
def test_decoders(settings: dict[str, Any]) -> None:
    model = encoder_decoder("bart")
    start: dict[str, Any] = {"decoder_start_token_id": 1}
    output = generate_output(model, IDS, num_return_sequences=2, **start, **CALL, **settings, **DICT)
    assert isinstance(output.cache, EncoderDecoderCache)
    layer: Any = output.cache.cross_attention_cache.layers[0]
    assert len(layer.keys) == 4
    goes_on(model, output, input_ids=IDS.repeat_interleave(2, 0), **start)


@pytest.mark.parametrize("wants_dict", [True, False])
def test_the_callers_cache_follows(wants_dict: bool) -> None:
    model = hf_model("llama")
    given = DynamicCache(config=model.config)
    ids = IDS.repeat_interleave(3, 0)
    first = generate_tokens(model, ids, max_new_tokens=1, past_key_values=given, pad_token_id=0)
    output: Any = generate(model, first[::3], past_key_values=given, return_dict_in_generate=wants_dict, **CALL, **ENDS)
    sequences = output.sequences if wants_dict else output
    new = longer(sequences)
    resumed = generate_tokens(model, new, past_key_values=given, max_new_tokens=5, pad_token_id=0)
    assert torch.equal(resumed, generate_tokens(model, new, max_new_tokens=5, pad_token_id=0))


@functools.cache
def small(family: str) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"initializer_range": 0.35, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "mamba":
        model: Any = MambaForCausalLM(MambaConfig(state_size=4, **sizes))
    else:
        heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        model = MistralForCausalLM(MistralConfig(sliding_window=int(family), **heads, **sizes))
    model.generation_config = GenerationConfig()
    return model.eval()


@pytest.mark.parametrize("family", ["5", "20", "mamba"])
def test_caches_without_a_crop_are_refused_if_rows_differ(family: str) -> None:
    model = small(family)
    same = generate_output(model, IDS, num_return_sequences=3, **CALL, **DICT)
    if family != "mamba":
        # This cache counts no positions, so a call cannot know how much of the text it has read.
        goes_on(model, same)
    output = generate_output(model, IDS, num_return_sequences=3, eos_token_id=[*range(2, 20)], **CALL, **DICT)
    if family == "20":
        # The window is not full yet.
        goes_on(model, output)
        return
    for cache in (output.cache, copy.deepcopy(output.cache)):
        with pytest.raises(ValueError, match="`past_key_values` cannot be continued: beams of different lengths"):
            generate(model, longer(output.sequences), past_key_values=cache, max_new_tokens=1, pad_token_id=0)


@pytest.mark.parametrize("settings", [{}, ENDS], ids=["full", "ends"])
def test_the_pairs_of_a_plain_module_are_aligned_too(settings: dict[str, Any]) -> None:
    model = TupleCacheModel()
    output = generate_output(model, IDS, num_return_sequences=2, **CALL, **settings, **DICT)
    ((keys, values),) = output.past_key_values
    _, (expected,) = model(output.sequences[:, : keys.shape[2]])
    assert len(keys) == 4 and torch.allclose(keys, expected[0]) and torch.allclose(values, expected[1])
