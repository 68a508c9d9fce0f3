"""Every kind of cache, prompts read in chunks, continuation from a cache, and refusals."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, MistralConfig, MistralForCausalLM, StaticCache, cache_utils
from transformers.cache_utils import QuantizedLayer
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS as THEIR_KINDS

from pygen.generate import generate
from pygen.models import cache as cache_verbs
from tests.generate.against_transformers import assert_both_same
from tests.generate.models import ENCODER_DECODERS, FAMILIES, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]])

KEEP: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
COPIES = {"do_sample": True, "num_return_sequences": 2}
STATIC = {"cache_implementation": "static"}
# Later releases lack "dynamic_full".
KINDS = sorted({"static", "sliding_window", "hybrid", "hybrid_chunked", "dynamic", "dynamic_full"} & {*THEIR_KINDS})


def without_static_cache(model: Any) -> Any:
    """Removes the static cache that transformers leaves on the model."""
    vars(model).pop("_cache", None)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, COPIES], ids=["greedy", "copies"])
def test_every_kind_of_cache(kind: str, settings: dict[str, Any]) -> None:
    model = without_static_cache(sliding_model())
    attributes = set(vars(model))
    generate(model, IDS, max_new_tokens=6, cache_implementation=kind, **settings)
    assert set(vars(model)) == attributes
    assert_both_same(model, IDS, max_new_tokens=6, cache_implementation=kind, **KEEP, **settings)
    without_static_cache(model)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("settings", [{}, COPIES], ids=["greedy", "copies"])
def test_static_caches_of_encoder_decoders(family: str, settings: dict[str, Any]) -> None:
    model = without_static_cache(encoder_decoder(family))
    inputs = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0)) if family == "whisper" else IDS
    attributes = set(vars(model))
    call: dict[str, Any] = {"max_new_tokens": 6, "decoder_start_token_id": 1, "cache_implementation": "static"}
    generate(model, inputs, **call, **settings)
    assert set(vars(model)) == attributes
    assert_both_same(model, inputs, **call, **KEEP, **settings)
    without_static_cache(model)


def test_a_static_cache_that_transformers_left_is_not_touched() -> None:
    model = without_static_cache(hf_model("llama"))
    left = model.generate(
        IDS, max_new_tokens=6, cache_implementation="static", return_dict_in_generate=True
    ).past_key_values
    keys = left.layers[0].keys.clone()
    output = generate_output(
        model, IDS + 1, max_new_tokens=6, cache_implementation="static", return_dict_in_generate=True
    )
    # Later releases leave no cache on the model.
    assert getattr(model, "_cache", left) is left and torch.equal(left.layers[0].keys, keys)
    assert output.past_key_values is not left
    without_static_cache(model)


@functools.cache
def sliding_model() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4}
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**sizes, **heads, initializer_range=0.4, eos_token_id=None)).eval()


TEXT = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(1))
LEFT_PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@pytest.mark.parametrize("size", [1, 3, 7, 20])
@pytest.mark.parametrize(
    "settings", [{}, COPIES, {"cache_implementation": "static"}], ids=["greedy", "copies", "static"]
)
def test_prompts_in_pieces(family: str, size: int, settings: dict[str, Any]) -> None:
    model = without_static_cache(sliding_model() if family == "mistral" else hf_model(family))
    call = {"attention_mask": LEFT_PADDED, "max_new_tokens": 5, **settings}
    output = assert_both_same(model, TEXT, prefill_chunk_size=size, **call, **KEEP)
    torch.manual_seed(0)
    assert torch.equal(output.sequences, generate_tokens(model, TEXT, **call))
    without_static_cache(model)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_inputs_that_transformers_does_not_read_in_chunks(size: int) -> None:
    """Embeddings, a text whose beginning is cached, and the prompt of a decoder."""
    model = hf_model("llama")
    at_once = generate_tokens(model, TEXT, max_new_tokens=8)
    embeds = model.get_input_embeddings()(TEXT).detach()
    assert torch.equal(
        generate_tokens(model, inputs_embeds=embeds, prefill_chunk_size=size, max_new_tokens=8), at_once[:, 7:]
    )
    first = generate_output(model, TEXT[:, :3], max_new_tokens=1, return_dict_in_generate=True)
    resumed = generate_tokens(
        model, TEXT, past_key_values=first.past_key_values, prefill_chunk_size=size, max_new_tokens=8
    )
    assert torch.equal(resumed, at_once)
    bart = encoder_decoder("bart")
    call: dict[str, Any] = {
        "decoder_input_ids": TEXT,
        "decoder_start_token_id": TEXT[:, 0],
        "attention_mask": LEFT_PADDED,
    }
    expected = generate_tokens(bart, TEXT, max_new_tokens=8, **call)
    assert torch.equal(generate_tokens(bart, TEXT, prefill_chunk_size=size, max_new_tokens=8, **call), expected)


def test_pieces_are_as_long_as_asked() -> None:
    model = hf_model("gpt2")
    lengths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generate(model, TEXT, prefill_chunk_size=3, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    handle.remove()
    assert lengths == [3, 3, 1, 1, 1]


def test_images_are_not_cut_up() -> None:
    class WithImages(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, pixel_values: Any = None, **kwargs: Any) -> Any:
            raise AssertionError("must not run")

    with pytest.raises(NotImplementedError, match="`prefill_chunk_size`=2 cannot cut up `pixel_values`"):
        generate(
            WithImages(hf_model("llama").config),
            TEXT,
            pixel_values=torch.ones(2, 3),
            prefill_chunk_size=2,
            max_new_tokens=2,
        )


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("give", ["the whole text", "its end and the whole mask", "the whole text and its mask"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_continuing_from_a_cache(family: str, kind: str, give: str) -> None:
    model = sliding_model() if family == "mistral" else hf_model(family)
    mask = LEFT_PADDED if "mask" in give else torch.ones_like(LEFT_PADDED)
    cache = StaticCache(model.config, max_cache_len=20) if kind == "static" else DynamicCache(config=model.config)
    first = generate_output(
        model, TEXT, attention_mask=mask, past_key_values=cache, max_new_tokens=4, return_dict_in_generate=True
    )
    assert first.past_key_values is cache
    whole: dict[str, Any] = {"attention_mask": torch.cat([mask, mask.new_ones(2, 4)], dim=1)} if "mask" in give else {}
    text = first.sequences[:, -1:] if "end" in give else first.sequences
    resumed = generate_tokens(model, text, past_key_values=cache, max_new_tokens=5, **whole)
    at_once = generate_tokens(model, TEXT, attention_mask=mask, max_new_tokens=9)
    assert torch.equal(resumed, at_once[:, -6:] if "end" in give else at_once)


def filled(length: int) -> Any:
    return generate_output(
        hf_model("llama"), TEXT[:, :length], max_new_tokens=1, return_dict_in_generate=True
    ).past_key_values


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: {"past_key_values": filled(7)}, ValueError, "`past_key_values` has seen 7 positions, .* longer, got 7"),
    (
        lambda: {"past_key_values": filled(3), "input_ids": TEXT[:, :1]},
        ValueError,
        "has seen 3 positions, .* longer, got 1; to pass only its end, give the `attention_mask` of all of it",
    ),
    (
        lambda: {"past_key_values": StaticCache(hf_model("llama").config, max_cache_len=8)},
        ValueError,
        "`past_key_values` has room for 8 positions, the call needs 9",
    ),
    (
        lambda: {"past_key_values": DynamicCache(), "cache_implementation": "static"},
        ValueError,
        "`cache_implementation`='static' and `past_key_values` exclude each other",
    ),
    (lambda: {"past_key_values": ()}, TypeError, "`past_key_values` must be a cache object, got tuple"),
    (lambda: {"prefill_chunk_size": 0}, ValueError, "`prefill_chunk_size` must be"),
    (lambda: {"prefill_chunk_size": 2, "use_cache": False}, ValueError, "`prefill_chunk_size`=2 needs a cache"),
    (lambda: {"cache_implementation": "fast"}, ValueError, "`cache_implementation` must be one of"),
    (lambda: {"cache_implementation": "offloaded"}, ValueError, "`cache_implementation`='offloaded' moves a cache to"),
    (lambda: {"cache_implementation": "offloaded_static"}, ValueError, "='offloaded_static' moves a cache to the CPU"),
    (
        lambda: {"cache_implementation": "quantized", "cache_config": {"backend": "int8"}},
        ValueError,
        r"`cache_config`: `backend` must be one of \['quanto', 'hqq'(, 'fp8')?\], got 'int8'",
    ),
    (
        lambda: {"cache_implementation": "quantized", "cache_config": {"backend": "hqq"}},
        ImportError,
        "`cache_implementation`='quantized' with `backend`='hqq' needs hqq",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=[w[2][:50] for w in WRONG])
def test_wrong_caches(arguments: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model, settings = hf_model("llama"), arguments()
    ran: list[int] = []
    handle = model.register_forward_pre_hook(lambda *args: ran.append(1))
    try:
        with pytest.raises(error, match=message):
            generate(model, **{"input_ids": TEXT, "max_new_tokens": 3, **settings})
    finally:
        handle.remove()
    assert ran == []


class Rounded(QuantizedLayer):
    """Also stores its quantised part, here rounded to multiples of 1/64."""

    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        return (tensor * 64).round()

    def _dequantize(self, q_tensor: Tensor) -> Tensor:
        return q_tensor / 64


def test_quantized_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests only the dispatch, so it needs no package that quantises."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cache_utils, "QuantoQuantizedLayer", Rounded)
    config = {"residual_length": 3}
    model = hf_model("llama")
    for settings in ({}, COPIES):
        call: dict[str, Any] = {"cache_implementation": "quantized", "max_new_tokens": 8, **settings}
        output = assert_both_same(model, TEXT, cache_config=dict(config), **call, **KEEP)
        assert isinstance(output.past_key_values.layers[0], Rounded)
        generate(model, TEXT, cache_config=config, **call)
        assert config == {"residual_length": 3}
    assert not cache_verbs.can_expand(output.past_key_values) and not cache_verbs.can_crop(output.past_key_values)


def test_beams_over_quantized_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases cannot reorder quantized layers; transformers itself reads another beam's positions there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cache_utils, "QuantoQuantizedLayer", Rounded)
    beams: dict[str, Any] = {
        "cache_implementation": "quantized",
        "cache_config": {"residual_length": 3},
        "num_beams": 3,
    }
    model = hf_model("llama")
    if "reorder_cache" in vars(QuantizedLayer):
        assert_both_same(model, TEXT, max_new_tokens=8, **beams, **KEEP)
    else:
        with pytest.raises(NotImplementedError, match="`Rounded.reorder_cache` misses what is quantized"):
            generate(model, TEXT, max_new_tokens=8, **beams)


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this release has no 8-bit floating caches")
@pytest.mark.parametrize("settings", [{}, COPIES, {"num_beams": 3}], ids=["greedy", "copies", "beams"])
def test_caches_in_8_bit_floats(settings: dict[str, Any]) -> None:
    call = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}, "max_new_tokens": 8, **settings}
    output = assert_both_same(hf_model("llama"), TEXT, **call, **KEEP)
    assert isinstance(output.past_key_values.layers[0], vars(cache_utils)["Fp8QuantizedLayer"])
