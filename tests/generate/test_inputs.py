"""Inputs of a call: embeddings, features, and models with custom inputs or hooks."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import patch
from pygen.generate import generate
from tests.generate.against_transformers import EVERYTHING, assert_both_same
from tests.generate.models import FAMILIES, VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7, 8, 9], [18, 19, 20, 21, 22]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def embeds_of(model: Any, ids: Tensor = IDS) -> Tensor:
    embeds: Tensor = model.get_input_embeddings()(ids)
    return embeds.detach()


EMBEDS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 6},
    "with the ids": {"max_new_tokens": 6, "input_ids": IDS},
    "with no ids": {"max_new_tokens": 6, "input_ids": IDS[:, :0]},
    "with fewer ids": {"max_new_tokens": 6, "input_ids": IDS[:, :2], "attention_mask": MASK},
    "masked": {"max_new_tokens": 6, "attention_mask": MASK},
    "total length": {"max_length": 9},
    "total length, with the ids": {"max_length": 9, "input_ids": IDS},
    "total length, with fewer ids": {"max_length": 12, "input_ids": IDS[:, :2], "attention_mask": MASK},
    "least length": {"max_length": 12, "min_length": 9, "eos_token_id": list(range(50)), "pad_token_id": 0},
    "default length": {},
    "without a cache": {"max_new_tokens": 6, "use_cache": False},
    "copies": {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3, "attention_mask": MASK},
    "penalties": {"max_new_tokens": 6, "do_sample": True, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "static cache": {"max_new_tokens": 6, "cache_implementation": "static"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EMBEDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_embeddings_as_transformers(family: str, name: str) -> None:
    model = hf_model(family)
    assert_both_same(model, inputs_embeds=embeds_of(model), **EMBEDS[name], **EVERYTHING | {"output_attentions": False})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_embeddings_of_ids_give_the_tokens_of_ids(family: str, settings: dict[str, Any]) -> None:
    model = hf_model(family)
    call: Any = functools.partial(generate_tokens, model, attention_mask=MASK, max_new_tokens=7, **settings)
    torch.manual_seed(0)
    by_ids = call(IDS)
    torch.manual_seed(0)
    assert torch.equal(call(inputs_embeds=embeds_of(model)), by_ids[:, 5:])
    torch.manual_seed(0)
    assert torch.equal(call(IDS, inputs_embeds=embeds_of(model)), by_ids)


def test_ids_beside_longer_embeddings_need_no_mask() -> None:
    model = hf_model("llama")
    drawn = generate_tokens(model, IDS[:, :2], inputs_embeds=embeds_of(model), max_new_tokens=4)
    assert torch.equal(drawn[:, 2:], generate_tokens(model, IDS, max_new_tokens=4)[:, 5:])


def test_continuing_embeddings_from_a_cache() -> None:
    model = hf_model("llama")
    first = generate_output(model, inputs_embeds=embeds_of(model), max_new_tokens=3, return_dict_in_generate=True)
    longer = embeds_of(model, torch.cat([IDS, first.sequences], dim=1))
    resumed = generate_tokens(model, inputs_embeds=longer, past_key_values=first.past_key_values, max_new_tokens=4)
    assert torch.equal(resumed, generate_tokens(model, IDS, max_new_tokens=7)[:, 8:])


def reset(model: Any) -> Any:
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


def vision_encoder_decoder() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    encoder = transformers.ViTConfig(image_size=8, patch_size=4, initializer_range=0.3, **sizes)
    layers: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "initializer_range": 0.4}
    layers |= {"add_cross_attention": True, "is_decoder": True}
    decoder = transformers.GPT2Config(**layers)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return transformers.VisionEncoderDecoderModel(config)


def speech_to_text() -> Any:
    return transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            conv_channels=16,
            input_feat_per_channel=8,
            init_std=0.4,
            max_source_positions=50,
            max_target_positions=40,
        )
    )


def moonshine() -> Any:
    return transformers.MoonshineForConditionalGeneration(
        transformers.MoonshineConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            encoder_num_key_value_heads=2,
            decoder_num_key_value_heads=2,
            initializer_range=0.3,
        )
    )


FEATURES: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "vision": (vision_encoder_decoder, "pixel_values", (2, 3, 8, 8)),
    "speech": (speech_to_text, "input_features", (2, 20, 8)),
    "waveform": (moonshine, "input_values", (2, 2000)),
}


@pytest.mark.parametrize("name", FEATURES)
def test_models_that_read_something_else_than_ids(name: str) -> None:
    build, argument, shape = FEATURES[name]
    torch.manual_seed(0)
    model, values = reset(build()), torch.randn(shape)
    settings: dict[str, Any] = {"decoder_start_token_id": 1, "max_new_tokens": 6, "return_dict_in_generate": True}
    assert_both_same(model, values, **settings)
    assert_both_same(model, do_sample=True, num_return_sequences=2, **{argument: values, **settings})
    assert_both_same(model, values, input_ids=torch.tensor([[3, 4], [5, 6]]), **settings)


TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
OTHERS: dict[str, Any] = {
    "cache_params": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.5
        )
    ),
    "state": lambda: transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=16)
    ),
    "mems": lambda: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=16, initializer_range=0.4)
    ),
    "attention and recurrence": lambda: transformers.JambaForCausalLM(
        transformers.JambaConfig(
            **TINY,
            num_key_value_heads=2,
            use_mamba_kernels=False,
            mamba_d_state=4,
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
        )
    ),
    "no position_ids": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.4)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_models_with_other_states(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = reset(OTHERS[name]())
    assert_both_same(model, IDS, max_new_tokens=6, return_dict_in_generate=True, output_scores=True, **settings)


def test_hooks_of_a_class_are_called() -> None:
    """The model reverses its prompts, counts positions by twos, and updates its inputs itself."""

    class Own(transformers.GPT2LMHeadModel):
        def _prepare_model_inputs(self, inputs: Any, bos_token_id: Any, model_kwargs: Any) -> Any:
            base: Any = super()
            inputs, name, model_kwargs = base._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
            return inputs.flip(1), name, model_kwargs

        def _prepare_position_ids_for_generation(self, inputs: Any, model_kwargs: Any) -> Any:
            base: Any = super()
            return base._prepare_position_ids_for_generation(inputs, model_kwargs) * 2

        def _prepare_attention_mask_for_generation(  # type: ignore[override]
            self, inputs: Tensor, *args: Any
        ) -> Tensor:
            return (inputs != 5).long()

        def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            updated = super()._update_model_kwargs_for_generation(*args, **kwargs)
            updated["position_ids"][:, -1] += 1
            return updated

        def _expand_inputs_for_generation(  # type: ignore[override]
            self, *args: Any, **kwargs: Any
        ) -> Any:
            return super()._expand_inputs_for_generation(*args, **kwargs)

    model = Own(hf_model("gpt2").config)
    model.load_state_dict(hf_model("gpt2").state_dict())
    reset(model)
    output = assert_both_same(model, IDS, max_new_tokens=5, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences[:, :5], IDS.flip(1))
    assert_both_same(model, IDS, max_new_tokens=5, do_sample=True, num_return_sequences=2)


def test_whisper_is_transformers_generate_and_not_its_own() -> None:
    model = encoder_decoder("whisper")
    features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[3, 4], [3, 4]])
    drawn = assert_both_same(model, features, decoder_input_ids=ids, decoder_start_token_id=1, max_new_tokens=6)
    assert torch.equal(drawn[:, :2], ids)


def test_whispers_own_generate_runs_on_top_of_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_decoder("whisper")
    tokens = {"decoder_start_token_id": 1, "eos_token_id": 50, "pad_token_id": 50, "no_timestamps_token_id": 99}
    settings = transformers.GenerationConfig(**tokens, max_length=12, is_multilingual=False)
    monkeypatch.setattr(model, "generation_config", settings)
    features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(3))
    expected = model.generate(features)
    with patch(transformers.GenerationMixin):
        assert torch.equal(model.generate(features), expected)


@pytest.mark.parametrize(
    "hook", ["generate", "_sample", "_prefill", "_get_logits_processor", "_prepare_generation_config"]
)
def test_hooks_that_replace_the_loop_are_refused(hook: str) -> None:
    own = type("Own", (transformers.GPT2LMHeadModel,), {hook: lambda self, *args, **kwargs: None})
    model = own(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(NotImplementedError, match=f"`model`=Own: its own `{hook}` replaces transformers'"):
        generate(model, IDS, max_new_tokens=2)


def without_embeds() -> Any:
    class Own(transformers.GPT2LMHeadModel):
        def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
            base: Any = super()
            return base.prepare_inputs_for_generation(input_ids, **kwargs)

    return Own(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=VOCAB_SIZE))


X = torch.zeros(2, 5, 32)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"inputs_embeds": [[1.0]]}, TypeError, "`inputs_embeds` must be a tensor, got list"),
    ({"inputs_embeds": IDS}, TypeError, "`inputs_embeds` must hold floating-point numbers, got torch.int64"),
    ({"inputs_embeds": X[0]}, ValueError, r"`inputs_embeds` must have shape .* got \(5, 32\)"),
    ({"inputs_embeds": X[:, :0]}, ValueError, r"`inputs_embeds` must have shape .* got \(2, 0, 32\)"),
    ({"inputs_embeds": X.to("meta")}, ValueError, "`inputs_embeds` must be on the model's device"),
    ({"inputs_embeds": X[:1], "input_ids": IDS}, ValueError, r"must hold one row per prompt \(2\), got 1"),
    ({"inputs_embeds": X, "input_ids": IDS.float()}, TypeError, "`input_ids` must hold integers"),
    (
        {"inputs_embeds": X, "attention_mask": IDS[:, :3]},
        ValueError,
        r"of `inputs_embeds` \(2, 5\), got \(2, 3\)",
    ),
    ({"inputs_embeds": X, "max_length": 5}, ValueError, r"larger than the length of `inputs_embeds` \(5\), got 5"),
    ({"input_ids": IDS[:, :0]}, ValueError, r"`input_ids` must have shape .* got \(2, 0\)"),
    ({"model": without_embeds(), "inputs_embeds": X}, ValueError, "`inputs_embeds`: Own cannot start from embeddings"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_wrong_inputs(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    settings = {} if "max_length" in arguments else {"max_new_tokens": 2}
    with pytest.raises(error, match=message):
        generate(**{"model": hf_model("gpt2"), **settings, **arguments})
