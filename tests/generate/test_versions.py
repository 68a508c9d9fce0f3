"""Names and helpers that differ between releases of transformers, tested with the installed one."""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from pygen import generate
from pygen.models import versions
from pygen.models.versions import CACHE_NAMES, HookNames
from tests.generate.models import encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

TEXT = torch.tensor([[5, 9, 2, 11, 7, 3, 8, 4, 6, 10]])
CALL: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def read_lengths(model: nn.Module) -> list[int]:
    """Returns a list that collects the input length of each forward of `model`."""
    lengths: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = counted  # type: ignore[method-assign]
    return lengths


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_both_names_of_a_cache_are_taken(name: str) -> None:
    model = hf_model("llama")
    given: dict[str, Any] = {name: DynamicCache(config=model.config)}
    first = generate_tokens(model, TEXT, **CALL, **given)
    lengths = read_lengths(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed = generate_tokens(model, first, **CALL, **given)
    finally:
        del model.forward
    assert lengths == [1, 1, 1, 1]
    assert torch.equal(resumed, generate_tokens(model, TEXT, max_new_tokens=8, do_sample=False))


def test_mamba_takes_its_cache_by_every_name() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = MambaForCausalLM(config).eval()
    whole = generate_tokens(model, TEXT, **CALL, pad_token_id=0)
    for name in CACHE_NAMES:
        given: dict[str, Any] = {name: DynamicCache(config=config)}
        assert torch.equal(generate_tokens(model, TEXT, **CALL, pad_token_id=0, **given), whole)
        assert given[name].has_previous_state()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_two_names_at_once_are_refused(family: str) -> None:
    model = hf_model(family) if family == "llama" else encoder_decoder(family)
    with pytest.raises(ValueError, match="`past_key_values` and `cache` are two names of one argument, got both"):
        generate(model, TEXT, **CALL, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_outputs_have_both_names(settings: dict[str, Any]) -> None:
    output = generate_output(hf_model("llama"), TEXT, **CALL, **settings, return_dict_in_generate=True)
    assert isinstance(output.cache, DynamicCache)
    assert output.past_key_values is output.cache is output["cache"] is output["past_key_values"]
    assert "cache" in output and "past_key_values" in output and output.get("cache") is output.cache


@pytest.mark.parametrize("longest", [5, 64])
def test_max_cache_len_is_the_least_length_of_a_static_cache(longest: int) -> None:
    call: dict[str, Any] = {**CALL, "cache_implementation": "static", "return_dict_in_generate": True}
    output = generate_output(hf_model("llama"), TEXT, max_cache_len=longest, **call)
    assert output.cache.layers[0].keys.shape[2] == max(longest, 13)
    assert torch.equal(output.sequences, generate_tokens(hf_model("llama"), TEXT, **CALL))


def test_releases_outside_of_those_tested_are_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pygen")
    for release, count in (("5.24.0", 0), ("5.25.0.dev0", 1), ("6.0.0", 1), ("5.6.0", 1)):
        monkeypatch.setattr(versions, "release", lambda release=release: release)
        versions.warn_unless_tested.cache_clear()
        caplog.clear()
        for _ in range(2):
            generate(hf_model("llama"), TEXT, **CALL)
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [f"pygen was tested with transformers 5.6.1 to 5.24.0, and {release} is installed."] * count


class OlderLlama(LlamaForCausalLM):
    """A model written for a release that calls the cache `past_key_values`."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        kwargs[HookNames(hf_model("llama")).argument] = past_key_values
        return super().forward(input_ids, attention_mask, **kwargs)


def test_a_class_with_another_name_in_its_forward_keeps_its_cache() -> None:
    model = hf_model("llama")
    older = OlderLlama(model.config).eval()
    older.load_state_dict(model.state_dict())
    lengths = read_lengths(older)
    assert torch.equal(generate_tokens(older, TEXT, **CALL), generate_tokens(model, TEXT, **CALL))
    assert lengths == [10, 1, 1, 1]


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_plain_modules_may_use_either_name(name: str) -> None:
    seen: list[tuple[int, bool]] = []

    class Module(nn.Module):
        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            seen.append((input_ids.shape[1], kwargs[name] is not None))
            return torch.nn.functional.one_hot(input_ids + 1, 32).float(), "cache"

    parameters = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in ("input_ids", name)]
    module = Module()
    module.forward.__func__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *parameters]
    )
    assert generate_tokens(module, torch.tensor([[1, 2]]), **CALL).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert seen == [(2, False), (1, True), (1, True), (1, True)]
