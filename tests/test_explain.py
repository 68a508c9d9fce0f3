"""`pygen.explain` describes what the call does, and runs nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen.config.config import DEFAULTS
from tests.generate.models import cached_model, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_output

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])
LIMIT = {"max_new_tokens": 6}


def keep(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores


class Streamer(pygen.BaseStreamer):
    def put(self, value: Tensor) -> None:
        raise AssertionError

    def end(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}])
def test_nothing_runs(settings: dict[str, Any]) -> None:
    model, before = hf_model("llama"), torch.get_rng_state()
    calls: list[Any] = []
    handle = model.register_forward_pre_hook(lambda *arguments: calls.append(arguments))
    attributes = dict(vars(model))
    explanation = pygen.explain(model, IDS[:1], streamer=Streamer(), **LIMIT, **settings)
    handle.remove()
    assert calls == []
    assert dict(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), before)
    assert str(explanation).startswith("model      LlamaForCausalLM, by pygen.models.transformers\n")


def test_values_and_sources() -> None:
    model = counting_table()
    model.generation_config = pygen.GenerationConfig(top_k=7, temperature=0.5)
    config = pygen.GenerationConfig(temperature=0.6, top_p=0.8)
    explained = pygen.explain(model, IDS, config, do_sample=True, top_p=0.9, **LIMIT)
    found = {
        name: (explained[name].value, explained[name].source)
        for name in ("top_k", "temperature", "top_p", "min_length")
    }
    assert found == {
        "top_k": (7, "model"),
        "temperature": (0.6, "generation_config"),
        "top_p": (0.9, "argument"),
        "min_length": (0, "default"),
    }
    names = [setting.name for setting in explained.settings]
    assert names == sorted(names)
    assert {name for name, value in DEFAULTS.items() if value is not None} <= {*names}
    with pytest.raises(KeyError):
        explained["bad_words_ids"]


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"temperature": 0.5}, {"temperature": "acts in sampling only, `do_sample` is not True"}),
        ({"temperature": 0.5, "do_sample": True}, {}),
        ({"seed": 3}, {"seed": "acts in sampling only, `do_sample` is not True"}),
        ({"length_penalty": 2.0}, {"length_penalty": "acts in beam search only, `num_beams` is 1"}),
        ({"length_penalty": 2.0, "num_beams": 2}, {}),
        ({"num_assistant_tokens": 3}, {"num_assistant_tokens": "acts in assisted decoding only"}),
        ({"max_length": 30}, {"max_length": "`max_new_tokens` decides"}),
        ({"min_length": 4, "min_new_tokens": 2}, {"min_length": "`min_new_tokens` decides"}),
        ({"output_scores": True}, {"output_scores": "`return_dict_in_generate` is not True"}),
        ({"output_scores": True, "return_dict_in_generate": True}, {}),
        ({"use_cache": False, "cache_implementation": "dynamic"}, {"cache_implementation": "`use_cache` is False"}),
        ({"disable_compile": True}, {"disable_compile": "only captured steps are compiled"}),
        ({"decoder_start_token_id": 3}, {"decoder_start_token_id": "the model has no encoder"}),
    ],
)
def test_what_has_no_effect(settings: dict[str, Any], ignored: dict[str, str]) -> None:
    explained = pygen.explain(counting_table(), IDS, **LIMIT, **settings)
    assert explained.ignored == ignored
    for name, reason in ignored.items():
        assert f"{name}: {reason}" in str(explained)


def test_settings_of_other_models() -> None:
    model = counting_table()
    model.generation_config = pygen.GenerationConfig(no_timestamps_token_id=3)
    assert pygen.explain(model, IDS, **LIMIT).ignored == {"no_timestamps_token_id": "no setting of generation"}


@pytest.mark.parametrize(
    ("settings", "mode", "loop", "rows"),
    [
        ({}, "greedy_search", "pygen.decode.sample", 2),
        ({"do_sample": True, "num_return_sequences": 3}, "sample", "pygen.decode.sample", 6),
        ({"num_beams": 4}, "beam_search", "pygen.decode.beam", 8),
        ({"num_beams": 4, "do_sample": True}, "beam_sample", "pygen.decode.beam", 8),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
            "group_beam_search",
            "pygen.decode.diverse_beam",
            8,
        ),
        ({"num_beams": 4, "force_words_ids": [[7]]}, "constrained_beam_search", "pygen.decode.constrained_beam", 8),
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation", "pygen.decode.assisted", 2),
    ],
)
def test_mode_loop_and_rows(settings: dict[str, Any], mode: str, loop: str, rows: int) -> None:
    explained = pygen.explain(counting_table(), IDS, **LIMIT, **settings)
    assert (explained.mode, explained.loop, explained.rows, explained.batch_size) == (mode, loop, rows, 2)


def test_lengths_tokens_and_stopping() -> None:
    explained = pygen.explain(
        counting_table(), IDS, max_length=9, min_length=5, eos_token_id=[4, 5], max_time=2.5, stopping_criteria=[keep]
    )
    assert (explained.prompt_length, explained.max_new_tokens, explained.min_new_tokens) == (3, 6, 2)
    assert (explained.eos_token_ids, explained.pad_token_id) == ([4, 5], 4)
    assert explained.stopping == ("after 6 tokens", "at token ids [4, 5]", "after 2.5 seconds", "keep")
    assert "prompt 3, then at most 6 tokens, no end in the first 2" in str(explained)
    with_default = pygen.explain(counting_table(), IDS)
    assert with_default.notes == ("Neither `max_new_tokens` nor `max_length` is set: generating up to 20 tokens.",)


def test_stages_and_what_did_not_fuse() -> None:
    settings: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.2, "eos_token_id": 4}
    fused = pygen.explain(counting_table(), IDS, **LIMIT, **settings)
    assert [(s.first, s.end, s.stages) for s in fused.stages] == [
        (0, None, ("repetition_penalty + temperature + top_k + draw",))
    ]
    assert (fused.not_fused, list(fused.backends)) == ((), ["sample"])
    apart = pygen.explain(counting_table(), IDS, logits_processor=[keep], min_new_tokens=2, **LIMIT, **settings)
    assert [(s.first, s.end, s.stages) for s in apart.stages] == [
        (0, 2, ("repetition_penalty + bans", "keep", "temperature + top_k + draw")),
        (2, None, ("repetition_penalty", "keep", "temperature + top_k + draw")),
    ]
    assert len(apart.not_fused) == 1 and "`logits_processor[0]` (keep): " in apart.not_fused[0]
    assert list(apart.backends) == ["process_logits", "sample"]
    assert "steps 0 to 1:" in str(apart) and "from step 2:" in str(apart)


LOGPROBS: tuple[dict[str, Any], ...] = ({}, {"output_logprobs": "raw"}, {"num_beams": 2})


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    beams = pygen.explain(counting_table(), IDS, num_beams=2, **LIMIT).backends
    assert beams == {"beam_step": "cpu", "reorder_cache": "cpu", "beam_finalize": "cpu"}
    constrained = pygen.explain(counting_table(), IDS, num_beams=2, force_words_ids=[[7]], **LIMIT).backends
    assert list(constrained) == ["process_logits", "reorder_cache", "beam_finalize"]
    logprobs: dict[str, Any] = {**LIMIT, "return_dict_in_generate": True, "output_logprobs": True}
    found = [pygen.explain(counting_table(), IDS, **{**logprobs, **of}).backends for of in LOGPROBS]
    assert ["token_logprobs" in backends for backends in found] == [False, True, True]
    with pygen.use_backend("torch"):
        assert pygen.explain(counting_table(), IDS, **LIMIT).backends == {"sample": "torch"}
    monkeypatch.setenv("PYGEN_BACKEND", "triton")
    assert "backend 'triton' cannot run on cpu" in pygen.explain(counting_table(), IDS, **LIMIT).backends["sample"]
    monkeypatch.delenv("PYGEN_BACKEND")
    monkeypatch.setitem(pygen.backends._MACHINE_REASONS, "cpu", lambda: "no compiler")
    assert (
        pygen.explain(counting_table(), IDS, **LIMIT).backends["sample"]
        == "torch; backend 'cpu' cannot run: no compiler"
    )


@pytest.mark.parametrize(
    ("settings", "noise"),
    [
        ({}, "none: nothing is drawn"),
        ({"do_sample": True}, "torch's default generator, "),
        ({"do_sample": True, "generator": torch.Generator()}, "the torch.Generator given, "),
        ({"do_sample": True, "seed": 4}, "philox, of seed 4, "),
    ],
)
def test_noise(settings: dict[str, Any], noise: str) -> None:
    assert pygen.explain(counting_table(), IDS, **LIMIT, **settings).noise.startswith(noise)


def test_caches() -> None:
    def cache(model: Any, **settings: Any) -> str:
        return pygen.explain(model, IDS, **LIMIT, **settings).cache

    model = hf_model("llama")
    given = generate_output(model, IDS, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    assert cache(model) == "the model's default"
    assert cache(model, cache_implementation="static") == "static"
    assert cache(model, use_cache=False).startswith("none, `use_cache` is False")
    longer = torch.ones(2, 6, dtype=torch.int64)
    assert cache(model, past_key_values=given, attention_mask=longer) == "the caller's DynamicCache"
    assert cache(counting_table()).startswith("none, forward takes no `past_key_values`")
    assert cache(cached_model()) == "what forward returns"


def test_encoder_decoders_and_own_classes() -> None:
    explained = pygen.explain(encoder_decoder("t5"), IDS, decoder_start_token_id=0, **LIMIT)
    assert (explained.prompt_length, explained.ignored) == (1, {})

    class Own(type(counting_table()), pygen.GenerationMixin):  # type: ignore[misc]
        pass

    assert pygen.explain(Own(torch.eye(9)), IDS, **LIMIT).model == "Own, by pygen.models.mixin"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_p": 2}, ValueError, "`top_p` must be a number"),
        ({"nonsense": 2}, ValueError, "`model` does not use these arguments: `nonsense`"),
        ({"logits_processor": [3]}, TypeError, "`logits_processor"),
        ({"max_length": 2, "max_new_tokens": None}, ValueError, "`max_length` must be larger"),
        ({"custom_generate": keep}, NotImplementedError, "`custom_generate`"),
    ],
)
def test_refused_as_generate_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pygen.explain(counting_table(), IDS, **{**LIMIT, **arguments})
    with pytest.raises(TypeError, match="positional"):
        pygen.explain(counting_table(), IDS, None, [keep])
