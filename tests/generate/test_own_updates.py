"""Drafts on models that override `_update_model_kwargs_for_generation`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from pygen.generate import generate
from pygen.models.own_updates import OwnUpdates
from tests.generate.models import hf_model
from tests.helpers.generation import generate_output, generate_tokens
from tests.shadow.architectures import ARCHITECTURES, tiny_model

NAMES = ("IdeficsForVisionText2Text", "MllamaForConditionalGeneration", "PaliGemmaForConditionalGeneration")
CALL: dict[str, Any] = {"max_new_tokens": 14, "pad_token_id": 0, "eos_token_id": None}
IDS = torch.tensor([[5, 17, 40, 8, 9, 5, 17], [3, 3, 17, 40, 8, 9, 3]])


def forwards(model: Any, **call: Any) -> tuple[Any, int]:
    calls: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        return generate(model, **call), len(calls)
    finally:
        handle.remove()


@pytest.mark.parametrize("source", ["lookup", "assistant"])
@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_a_call_without_drafts(name: str, source: str) -> None:
    model = tiny_model(name)
    drafts: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if source == "assistant":
        drafts = {"assistant_model": copy.deepcopy(model), "assistant_confidence_threshold": 0.0}
    for rows in (1, 2):
        inputs = ARCHITECTURES[name].inputs(model.config, rows)
        expected = generate_tokens(model, **inputs, **CALL)
        # The first call probes how the model reads several tokens.
        assert torch.equal(generate_tokens(model, **inputs, **CALL, **drafts), expected)
        found, count = forwards(model, **inputs, **CALL, **drafts)
        assert torch.equal(found, expected)
        assert source == "lookup" or count < 5


def test_an_image_of_as_many_positions_as_the_text_stays_in_the_cache() -> None:
    model = tiny_model(NAMES[1])
    inputs = ARCHITECTURES[NAMES[1]].inputs(model.config, 1)
    inputs |= {name: inputs[name][:, :5] for name in ("input_ids", "cross_attention_mask")}
    expected = generate_output(model, **inputs, **CALL, return_dict_in_generate=True)
    assert [layer.keys.shape[2] for layer in expected.past_key_values.layers] == [18, 5]
    found = generate_output(model, **inputs, **CALL, prompt_lookup_num_tokens=3, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected.sequences)
    assert [layer.keys.shape[2] for layer in found.past_key_values.layers] == [18, 5]


class Steered(transformers.GPT2LMHeadModel):
    """Each token's position depends on the logits before it, so the model cannot read two tokens at once."""

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        updated["position_ids"][:, -1] += outputs.logits[:, -1].argmax(-1) % 3
        return updated


class InPlace(transformers.GPT2LMHeadModel):
    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        model_kwargs["position_ids"] += 1
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)


def like_gpt2(model_class: type[Any]) -> Any:
    model = model_class(hf_model("gpt2").config).eval()
    model.load_state_dict(hf_model("gpt2").state_dict())
    return model


def test_a_hook_that_reads_the_outputs_is_called_token_by_token(caplog: pytest.LogCaptureFixture) -> None:
    model = like_gpt2(Steered)
    expected = generate_tokens(model, IDS, **CALL)
    assert not torch.equal(expected, generate_tokens(hf_model("gpt2"), IDS, **CALL))
    assert torch.equal(generate_tokens(model, IDS, **CALL, prompt_lookup_num_tokens=3), expected)
    assert "one at a time" in caplog.text
    plain = hf_model("gpt2")
    assert torch.equal(generate_tokens(plain, IDS, **CALL, assistant_model=model), generate_tokens(plain, IDS, **CALL))


def test_a_hook_that_writes_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="`model`=InPlace .* changes arguments in place, .* cannot be taken back"):
        generate(like_gpt2(InPlace), IDS, **CALL, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="`assistant_model`=InPlace .* changes arguments in place"):
        generate(hf_model("gpt2"), IDS, **CALL, assistant_model=like_gpt2(InPlace))


def test_arguments_follow_the_tokens_that_stay() -> None:
    def update(outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen: Tensor = outputs["logits"][:, -1].sum(-1, keepdim=True)
        return kwargs | {"seen": torch.cat([kwargs["seen"], seen], dim=1)}

    def outputs(*values: float) -> Any:
        logits: Any = torch.tensor(values).view(1, -1, 1)
        return CausalLMOutputWithPast(logits=logits)

    updates = OwnUpdates(update, keep=True)
    updates.start(outputs(9), {"seen": torch.zeros(1, 0)})
    assert updates.reads_outputs and not updates.writes_in_place
    assert updates.arguments(0, 3)["seen"].tolist() == [[9, 9, 9]]
    assert updates.add(outputs(1, 2, 3))["seen"].tolist() == [[9, 1, 2, 3]]
    assert updates.arguments(1, 2)["seen"].tolist() == [[9, 1, 3]]
    # Logits may cover the last token only.
    assert updates.add(outputs(5))["seen"].tolist() == [[9, 1, 5, 5]]
    updates.hold()
    assert updates.arguments(2, 1)["seen"].tolist() == [[9, 1, 5]]
    updates.add(outputs(6))
    with pytest.raises(KeyError):
        updates.arguments(1, 1)
