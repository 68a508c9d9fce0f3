"""GenerationConfig in memory: hand-written facts."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig as TheirConfig
from transformers.generation import configuration_utils as theirs

from pygen.config import config as ours
from pygen.config.config import (
    DEFAULTS,
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from pygen.config.rules import RULES
from tests.helpers.releases import since

PER_ROW = {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
}


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    transformers.logging.set_verbosity(logging.CRITICAL)
    ours._log_once.cache_clear()


# Facts


def test_every_setting_is_none_until_given() -> None:
    config = GenerationConfig()
    assert len(RULES) == 67
    assert all(getattr(config, name) is None for name in RULES)
    assert len(config.to_dict()) == 69
    assert json.loads(config.to_json_string()) == {"transformers_version": "5.6.1"}
    assert repr(config) == "GenerationConfig {}\n"


def test_every_setting_is_declared_with_a_type() -> None:
    declared = {name for name in GenerationConfig.__annotations__ if not name.startswith("_")}
    assert declared == RULES.keys() | {"transformers_version"}
    assert {name for name, rule in RULES.items() if rule.per_row} == PER_ROW


def test_defaults() -> None:
    assert len(DEFAULTS) == 34
    assert DEFAULTS["top_k"] == 50
    assert DEFAULTS["max_length"] == 20
    assert TheirConfig._get_default_generation_params() == DEFAULTS == GenerationConfig.default_values()
    assert DEFAULTS.keys() <= RULES.keys()
    GenerationConfig(**DEFAULTS).validate(strict=True)


def test_unknown_keywords_become_attributes() -> None:
    config: Any = GenerationConfig(alignment_heads=[[1, 2]], self=3)
    assert config.alignment_heads == [[1, 2]]
    assert json.loads(config.to_json_string(ignore_metadata=True)) == {"alignment_heads": [[1, 2]], "self": 3}
    with pytest.raises(TypeError):
        GenerationConfig({"top_k": 1})  # type: ignore[call-arg, misc]


def test_explicit_default_differs_from_unset() -> None:
    assert GenerationConfig(top_k=50) != GenerationConfig()
    assert GenerationConfig(top_k=50) == GenerationConfig(top_k=50, _commit_hash="a" * 40, transformers_version="1")
    assert GenerationConfig() != {}
    assert hash(GenerationConfig(top_k=50, do_sample=True)) == hash(GenerationConfig(do_sample=True, top_k=50))


def test_json_text() -> None:
    config = GenerationConfig(do_sample=True, temperature=1, eos_token_id=[2, 0], sequence_bias={(5, 6): -1.0})
    assert config.to_json_string(ignore_metadata=True) == (
        '{\n  "do_sample": true,\n  "eos_token_id": [\n    2,\n    0\n  ],\n'
        '  "sequence_bias": {\n    "(5, 6)": -1.0\n  },\n  "temperature": 1\n}\n'
    )


def test_what_json_cannot_hold() -> None:
    marker = object()
    config: Any = GenerationConfig(marker=marker, dtype=torch.bfloat16, nested={"dtype": torch.float16})
    assert config == GenerationConfig(marker=marker, dtype="bfloat16", nested={"dtype": "float16"})
    assert config != GenerationConfig(marker=object(), dtype="bfloat16", nested={"dtype": "float16"})
    assert config.nested["dtype"] is torch.float16
    assert config.to_dict()["nested"] == {"dtype": "float16"}
    assert "object object" in repr(config)
    with pytest.raises(TypeError, match="object object"):
        config.to_json_string()


def test_to_dict_is_independent() -> None:
    config = GenerationConfig(eos_token_id=[1], cache_config={"nbits": 4})
    config.to_dict()["eos_token_id"].append(2)
    config.to_dict()["cache_config"]["nbits"] = 2
    assert config.eos_token_id == [1]
    assert config.cache_config == {"nbits": 4}
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config


@pytest.mark.parametrize(
    ("settings", "assistant", "mode"),
    [
        ({}, None, "greedy_search"),
        ({"do_sample": True}, None, "sample"),
        ({"do_sample": True, "top_k": [4, 5], "penalty_alpha": 0.6}, None, "sample"),
        ({"num_beams": 2}, None, "beam_search"),
        ({"num_beams": 2, "do_sample": True}, None, "beam_sample"),
        ({"num_beams": 4, "num_beam_groups": 2}, None, "group_beam_search"),
        ({"top_k": 4, "penalty_alpha": 0.6}, None, "contrastive_search"),
        ({"top_k": 1, "penalty_alpha": 0.6}, None, "greedy_search"),
        ({"constraints": []}, None, "constrained_beam_search"),
        ({"force_words_ids": [[1]], "num_beams": 3}, None, "constrained_beam_search"),
        ({"prompt_lookup_num_tokens": 3}, None, "assisted_generation"),
        ({"assistant_early_exit": 3, "do_sample": True}, None, "assisted_generation"),
        ({}, object(), "assisted_generation"),
        ({"num_beams": 2}, object(), "beam_search"),
        ({"dola_layers": "low"}, None, "dola_generation"),
        ({"dola_layers": [1, 2], "num_beams": 2}, None, "beam_search"),
    ],
)
def test_mode(settings: dict[str, Any], assistant: Any, mode: str) -> None:
    result = GenerationConfig(**settings).get_generation_mode(assistant)
    assert result is GenerationMode(mode)
    assert result == mode


def test_mode_enum() -> None:
    assert [mode.value for mode in GenerationMode] == [mode.value for mode in theirs.GenerationMode]
    with pytest.raises(ValueError, match=r"'nucleus' is no GenerationMode; choose one of \['contrastive_search'"):
        GenerationMode("nucleus")


# update, from_model_config, from_transformers


def test_update() -> None:
    config: Any = GenerationConfig(top_k=5)
    kwargs: dict[str, Any] = {"top_k": 6, "top_p": 0.5, "foo": 1, "do_sample": True}
    assert config.update(**kwargs) == {"foo": 1}
    assert kwargs["top_k"] == config.top_k == 6
    assert not hasattr(config, "foo")
    assert config.update(defaults_only=True, top_k=7, min_p=0.1) == {"top_k": 7}
    assert (config.top_k, config.min_p) == (6, 0.1)
    assert config.update(allow_custom_entries=True, foo=1) == {}
    assert config.foo == 1
    assert config.update(foo=2, top_k=None) == {}
    assert (config.foo, config.top_k) == (2, None)
    assert config.update(watermarking_config={"bias": 1.0}) == {}
    assert config.watermarking_config == WatermarkingConfig(bias=1.0)


def test_from_model_config() -> None:
    config = GenerationConfig.from_model_config(
        {"eos_token_id": 3, "hidden_size": 8, "output_scores": True, "top_k": None}
    )
    assert (config.eos_token_id, config.return_dict_in_generate, config._from_model_config) == (3, True, True)
    assert not hasattr(config, "hidden_size")
    given = {"pad_token_id": 1, "decoder": {"pad_token_id": 2, "bos_token_id": 4}, "_from_model_config": False}
    before = copy.deepcopy(given)
    config = GenerationConfig.from_model_config(given)
    assert (config.pad_token_id, config.bos_token_id) == (1, 4)
    assert given == before
    forced = GenerationConfig.from_model_config({"bos_token_id": 7, "force_bos_token_to_be_generated": True})
    assert forced.forced_bos_token_id == 7
    with pytest.raises(ValueError, match="`top_p` must be a number"):
        GenerationConfig.from_model_config({"top_p": 2})


def test_from_transformers() -> None:
    keys = [1, 2, 3]
    other = TheirConfig(
        do_sample=True,
        compile_config=transformers.CompileConfig(mode="default", options={"a": 1}),
        watermarking_config=transformers.SynthIDTextWatermarkingConfig(5, keys),
        foo={"dtype": torch.float16},
        _commit_hash="b" * 40,
    )
    other._eos_token_tensor = torch.tensor([1])
    config = GenerationConfig.from_transformers(other)
    assert config.compile_config == CompileConfig(mode="default", options={"a": 1})
    assert config.watermarking_config == SynthIDTextWatermarkingConfig(5, keys)
    assert config._commit_hash == (None if since("5.18") else "b" * 40)
    assert not hasattr(config, "_eos_token_tensor")
    assert GenerationConfig.from_transformers(config) is config
    assert GenerationConfig.from_transformers(TheirConfig(_from_model_config=True, top_k=50))._from_model_config is True
    with pytest.raises(ValueError, match=r"`top_p` must be a number in \[0, 1\].*got 1.5"):
        GenerationConfig.from_transformers(TheirConfig(top_p=1.5))
    for wrong in ({"top_k": 1}, transformers.LlamaConfig(), 3):
        with pytest.raises(TypeError, match="`generation_config` must be a GenerationConfig, got"):
            GenerationConfig.from_transformers(wrong)


# The configs inside


def test_compile_config() -> None:
    config = CompileConfig(fullgraph=True)
    config._compile_all_devices = True
    assert config.to_dict() == transformers.CompileConfig(fullgraph=True).to_dict()
    theirs = TheirConfig(compile_config=transformers.CompileConfig(fullgraph=True))
    assert GenerationConfig(compile_config=config).to_json_string(True, True) == theirs.to_json_string(True, True)


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (WatermarkingConfig(bias=1.5), transformers.WatermarkingConfig(bias=1.5)),
        (SynthIDTextWatermarkingConfig(5, [1, 2]), transformers.SynthIDTextWatermarkingConfig(5, [1, 2])),
    ],
)
def test_watermarking_configs(mine: Any, other: Any, tmp_path: Any) -> None:
    assert mine.to_dict() == other.to_dict()
    assert list(mine) == list(other)
    assert mine.to_json_string() == other.to_json_string()
    mine.to_json_file(tmp_path / "a")
    other.to_json_file(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert type(mine).from_dict(mine.to_dict(), ignored=1) == mine
    # The fields of a dict select the kind of watermark. transformers takes every dict for the first kind.
    assert GenerationConfig(watermarking_config=mine.to_dict()).watermarking_config == mine
    mine.update(ignored=1)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (
            WatermarkingConfig,
            {"greenlist_ratio": 1.5},
            r"`watermarking_config.greenlist_ratio` must be a number in \[0, 1\], got 1.5",
        ),
        (
            WatermarkingConfig,
            {"seeding_scheme": "x"},
            "`watermarking_config.seeding_scheme` must be one of 'lefthash', 'selfhash', got 'x'",
        ),
        (
            WatermarkingConfig,
            {"context_width": 0},
            "`watermarking_config.context_width` must be a 64-bit integer >= 1, got 0",
        ),
        (WatermarkingConfig, {"bias": None}, "`watermarking_config.bias` must be a finite number, got None"),
        (WatermarkingConfig, {"colour": 1}, "`watermarking_config.colour` is no field of WatermarkingConfig .*got 1"),
        (SynthIDTextWatermarkingConfig, {"ngram_len": 5}, "`watermarking_config` lacks keys"),
        (
            SynthIDTextWatermarkingConfig,
            {"ngram_len": 5, "keys": []},
            "`watermarking_config.keys` must be a non-empty list",
        ),
        (
            SynthIDTextWatermarkingConfig,
            {"ngram_len": 5, "keys": [1], "sampling_table_size": 2**24 + 1},
            r"`watermarking_config.sampling_table_size` must be an integer in \[1, 16777216\], got 16777217",
        ),
    ],
)
def test_wrong_watermarks_are_refused(cls: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.from_dict(fields)
    with pytest.raises(ValueError, match=message):
        GenerationConfig(watermarking_config=fields)


def test_watermark_update_is_all_or_nothing() -> None:
    mark = WatermarkingConfig()
    with pytest.raises(ValueError, match="context_width"):
        mark.update(bias=1.0, context_width=0)
    assert mark == WatermarkingConfig()


# No dependency


def test_works_without_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from pygen.config.config import GenerationConfig\n"
        "assert GenerationConfig(top_k=3).top_k == 3\n"
        "assert 'huggingface_hub' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
