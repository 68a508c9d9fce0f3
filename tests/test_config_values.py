"""Values that a GenerationConfig refuses, accepts per row, or only warns about."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig as TheirConfig

from pygen.config import config as ours
from pygen.config.config import GenerationConfig

METHODS = sorted(name for name in dir(GenerationConfig) if not name.startswith("_"))


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    transformers.logging.set_verbosity(logging.CRITICAL)
    ours._log_once.cache_clear()


INVALID = [
    ("temperature", -0.5, "a finite number >= 0, or a sequence of them, one per row"),
    ("temperature", float("nan"), "a finite number >= 0"),
    ("temperature", "0.5", "a finite number >= 0"),
    ("temperature", True, "a finite number >= 0"),
    ("temperature", [], "a finite number >= 0"),
    ("temperature", [1.0, -1.0], "a finite number >= 0"),
    ("temperature", [1.0, None], "a finite number >= 0"),
    ("temperature", [[1.0]], "a finite number >= 0"),
    ("top_k", 1.0, "a 64-bit integer >= 0"),
    ("top_k", -1, "a 64-bit integer >= 0"),
    ("top_k", 2**63, "a 64-bit integer >= 0"),
    ("top_k", 10**5000, "a 64-bit integer >= 0"),
    ("top_p", 1.2, r"a number in \[0, 1\]"),
    ("top_p", 10**400, r"a number in \[0, 1\]"),
    ("top_p", torch.tensor([0.5, 1.5]), r"a number in \[0, 1\]"),
    ("min_p", 1.01, r"a number in \[0, 1\]"),
    ("top_h", 0.0, r"a number in \(0, 1\]"),
    ("typical_p", 0.0, r"a number in \(0, 1\]"),
    ("epsilon_cutoff", 1.0, r"a number in \[0, 1\)"),
    ("eta_cutoff", 1.0, r"a number in \[0, 1\)"),
    ("repetition_penalty", 0.0, "a finite number > 0"),
    ("repetition_penalty", float("inf"), "a finite number > 0"),
    ("encoder_repetition_penalty", [1.0], "a finite number > 0, got"),
    ("do_sample", 1, "a boolean, got 1"),
    ("do_sample", [True, False], "a boolean"),
    ("early_stopping", 1, "a boolean or 'never'"),
    ("early_stopping", "always", "a boolean or 'never'"),
    ("max_new_tokens", 0, "a 64-bit integer >= 1"),
    ("max_time", -1, "a finite number >= 0"),
    ("stop_strings", [""], "a non-empty string"),
    ("num_beams", 0, "a 64-bit integer >= 1"),
    ("cache_implementation", "fast", "one of 'static', .*'paged'"),
    ("bad_words_ids", [], "a non-empty list of non-empty lists"),
    ("bad_words_ids", [[-1]], "a non-empty list of non-empty lists"),
    ("sequence_bias", {"a": 1.0}, "a non-empty dict"),
    ("sequence_bias", [[[1], float("nan")]], "a non-empty dict"),
    ("exponential_decay_length_penalty", [1], "a pair"),
    ("eos_token_id", [[1]], "an integer token id or a non-empty list"),
    ("compile_config", {"backend": "x"}, "a CompileConfig"),
    ("watermarking_config", "lefthash", "a WatermarkingConfig"),
    ("dola_layers", "mid", "'low', 'high' or a list"),
    ("presence_penalty", float("nan"), "a finite number"),
    ("top_n_sigma", -1.0, "a finite number >= 0"),
    ("frequency_penalty", "a", "a finite number"),
    ("seed", -1, r"an integer in \[0, 2\*\*64\)"),
    ("seed", 2**64, r"an integer in \[0, 2\*\*64\)"),
    ("output_logprobs", "both", "a boolean, 'processed' or 'raw'"),
    ("top_logprobs", -1, "a 64-bit integer >= 0"),
    ("kept_limit", 0, "a 64-bit integer >= 1"),
    ("on_invalid", "stop", "one of 'raise', 'greedy', 'eos'"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), INVALID, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(INVALID)])
def test_wrong_values_are_refused(name: str, value: Any, allowed: str) -> None:
    message = rf"^`{name}` must be {allowed}.*{'' if ', got' in allowed else ', got '}"
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**{name: value})
    config = GenerationConfig(top_k=7, other=1)
    before = dict(vars(config))
    with pytest.raises(ValueError, match=message):
        config.update(allow_custom_entries=True, **{"max_length": 3, "new": 1, name: value})
    assert vars(config) == before
    setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (0, 0.0, 2, 1e-6)),
        ("top_k", (0, 1, 2**40)),
        ("top_p", (0, 0.0, 1, 1.0)),
        ("min_p", (0.0, 1.0)),
        ("top_h", (1e-6, 1.0)),
        ("typical_p", (1e-6, 1.0)),
        ("epsilon_cutoff", (0.0, 0.999)),
        ("eta_cutoff", (0.0, 0.999)),
        ("repetition_penalty", (1e-6, 2)),
        ("no_repeat_ngram_size", (0, 3)),
    ],
)
def test_ends_of_ranges_and_values_per_row(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(GenerationConfig(do_sample=True, **{name: value}), name) == value
    per_row = [list(values), tuple(values), torch.tensor(values, dtype=torch.float64 if name[-1] != "k" else None)]
    if name in ("no_repeat_ngram_size",):
        per_row[2] = torch.tensor(values)
    for sequence in per_row:
        kept = getattr(GenerationConfig(do_sample=True, **{name: sequence}), name)
        assert list(kept) == list(values)
        assert isinstance(kept, (list, tuple))


def test_array_scalars_become_python_numbers() -> None:
    config = GenerationConfig(
        top_k=np.int64(3), temperature=torch.tensor(0.5), do_sample=np.True_, eos_token_id=torch.tensor([1])
    )
    assert config.do_sample is True
    assert (config.top_k, config.temperature, config.eos_token_id) == (3, 0.5, [1])
    assert config == GenerationConfig(top_k=3, temperature=0.5, do_sample=True, eos_token_id=[1])


@pytest.mark.parametrize("name", [*METHODS, "__init__", "__class__", "__dict__", "__anything__", "_file_text"])
def test_names_of_methods_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"^`{name}` must not be set: it would hide a part of GenerationConfig, got 'x'"
    ):
        GenerationConfig(**{name: "x"})
    config: Any = GenerationConfig()
    if name != "__anything__":
        with pytest.raises(ValueError, match=f"^`{name}` must not be set"):
            config.update(**{name: "x"})
    assert config == GenerationConfig()


@pytest.mark.parametrize(
    "name",
    [
        "logits_processor",
        "stopping_criteria",
        "prefix_allowed_tokens_fn",
        "synced_gpus",
        "assistant_model",
        "streamer",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
    ],
)
def test_arguments_of_generate_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TheirConfig(**{name: None})
    with pytest.raises(ValueError, match=f"^`{name}` must be given to generate"):
        GenerationConfig(**{name: None})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_return_sequences": 2},
            "`num_return_sequences` must be 1 without do_sample=True or num_beams > 1, got 2",
        ),
        ({"num_return_sequences": 3, "num_beams": 2}, r"`num_return_sequences` must be in \[1, num_beams=2\], got 3"),
    ],
)
def test_contradictions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)
    with pytest.raises(ValueError):
        TheirConfig(**settings)


def test_minor_issues_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    transformers.logging.set_verbosity(logging.WARNING)  # which pygen follows
    caplog.set_level(logging.INFO, logger="pygen.config")
    for _ in range(3):
        GenerationConfig(temperature=0.5, top_p=[1.0, 1.0])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["The following generation flags are not valid and may be ignored: ['temperature']."]
    assert len(warnings[0]) < 150
    assert len(caplog.records) == 2
    assert "`temperature` is set to `0.5`" in caplog.text
    with pytest.raises(ValueError, match=r"`temperature` is set to `0\.5`"):
        GenerationConfig(temperature=0.5).validate(strict=True)
