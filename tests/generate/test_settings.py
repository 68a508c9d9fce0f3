"""Which settings act, what is refused, and that a call changes none of its arguments."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen.config.config import CompileConfig, GenerationConfig
from pygen.generate import generate
from pygen.request.settings import resolve_settings
from tests.generate.models import CachedModel, cached_model, counting_table, hf_model
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


def test_priority_of_settings() -> None:
    model = GenerationConfig(top_k=1, top_p=0.1, temperature=0.1)
    passed = GenerationConfig(top_k=2, top_p=0.2)
    settings = resolve_settings(model, passed, {"top_k": 3, "unknown": 4})
    config = settings.config
    assert (config.top_k, config.top_p, config.temperature, config.typical_p) == (3, 0.2, 0.1, 1.0)
    assert settings.model_kwargs == {"unknown": 4}
    names = ("top_k", "top_p", "temperature", "typical_p")
    assert [settings.sources[n] for n in names] == ["argument", "generation_config", "model", "default"]


def test_none_as_an_argument_turns_off_and_in_a_config_inherits() -> None:
    assert resolve_settings(GenerationConfig(top_k=7), GenerationConfig(top_k=None), {}).config.top_k == 7
    assert resolve_settings(GenerationConfig(top_k=7), None, {"top_k": None}).config.top_k is None


@pytest.mark.parametrize("kind", [GenerationConfig, transformers.GenerationConfig])
def test_configs_of_both_libraries(kind: Any) -> None:
    model = hf_model("llama")
    torch.manual_seed(0)
    expected = generate_tokens(
        model, IDS, do_sample=True, top_p=0.5, max_new_tokens=5, eos_token_id=[3], pad_token_id=0
    )
    config = kind(do_sample=True, top_p=0.5, max_new_tokens=5, eos_token_id=[3], pad_token_id=0)
    torch.manual_seed(0)
    assert torch.equal(generate_tokens(model, IDS, config), expected)
    torch.manual_seed(0)
    assert torch.equal(generate_tokens(model, IDS, generation_config=config, num_return_sequences=1), expected)


def test_settings_of_pygen_inside_a_config() -> None:
    model = cached_model()
    config = GenerationConfig(do_sample=True, seed=3, frequency_penalty=0.5, temperature=[0.5, 2.0], max_new_tokens=4)
    by_name = generate_tokens(
        model, IDS, do_sample=True, seed=3, frequency_penalty=0.5, temperature=[0.5, 2.0], max_new_tokens=4
    )
    assert torch.equal(generate_tokens(model, IDS, config), by_name)


def test_nothing_of_the_caller_is_changed() -> None:
    model = hf_model("qwen2")
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = (ids != 0).long()
    config = GenerationConfig(do_sample=True, max_new_tokens=4, suppress_tokens=[4, 5], top_k=[3, 5])
    processors, criteria = [lambda ids, scores: scores], [lambda ids, scores: False]
    kept = copy.deepcopy((ids, mask, config.to_dict(), model.generation_config.to_dict(), model.config.to_dict()))
    attributes = set(vars(model))
    generate(
        model,
        ids,
        config,
        attention_mask=mask,
        pad_token_id=0,
        eos_token_id=3,
        num_return_sequences=2,
        repetition_penalty=1.2,
        logits_processor=processors,
        stopping_criteria=criteria,
    )
    after = (ids, mask, config.to_dict(), model.generation_config.to_dict(), model.config.to_dict())
    assert torch.equal(kept[0], after[0])
    assert torch.equal(kept[1], after[1])
    assert kept[2:] == after[2:]
    assert set(vars(model)) == attributes
    assert (len(processors), len(criteria)) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"max_new_tokens": 4}, 7),
        ({"max_length": 6}, 6),
        ({"max_new_tokens": 4, "max_length": 100}, 7),
        ({}, 23),
        ({"max_length": None}, 23),
        ({"max_new_tokens": 1}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lengths(settings: dict[str, Any], length: int) -> None:
    assert generate_tokens(cached_model(), IDS, **settings).shape == (2, length)


def test_default_length_stays_within_the_positions() -> None:
    ids = torch.randint(4, 100, (1, 60), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="generating up to 4 tokens"):
        assert generate_tokens(hf_model("llama"), ids).shape == (1, 64)


@pytest.mark.parametrize("setting", [{"min_length": 50}, {"min_new_tokens": 50}])
def test_unreachable_minimum_warns(setting: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"`{next(iter(setting))}` asks for"):
        generate(cached_model(), IDS, max_new_tokens=3, **setting)


def test_both_lengths_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        generate(cached_model(), IDS, max_new_tokens=3, max_length=9, min_new_tokens=1, min_length=2)
    assert [r.getMessage().split(" (=")[0] for r in caplog.records] == [
        "Both `max_new_tokens`",
        "Both `min_new_tokens`",
    ]


@pytest.mark.parametrize("give_mask", [True, False])
def test_right_padding_is_reported(caplog: pytest.LogCaptureFixture, give_mask: bool) -> None:
    ids = torch.tensor([[5, 6, 0], [7, 8, 9]])
    with caplog.at_level(logging.WARNING):
        mask: dict[str, Any] = {"attention_mask": (ids != 0).long()} if give_mask else {}
        generate(cached_model(), ids, pad_token_id=0, max_new_tokens=2, **mask)
    assert any("padded on the right" in r.getMessage() for r in caplog.records)


def test_left_padding_and_meant_pads_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(cached_model(), torch.tensor([[0, 6, 5], [7, 8, 9]]), pad_token_id=0, max_new_tokens=2)
        generate(
            cached_model(),
            torch.tensor([[5, 6, 0], [7, 8, 9]]),
            attention_mask=torch.ones(2, 3, dtype=torch.long),
            pad_token_id=0,
            max_new_tokens=2,
        )
    assert not caplog.records


def test_pads_that_may_be_eos_are_not_hidden() -> None:
    ids = torch.tensor([[0, 5, 6]])
    masks: list[Tensor] = []
    model = CachedModel()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    generate(model, ids, pad_token_id=0, eos_token_id=[0, 1], max_new_tokens=1)
    generate(model, ids, pad_token_id=0, eos_token_id=[1], max_new_tokens=1)
    assert [m.tolist() for m in masks] == [[[1, 1, 1]], [[0, 1, 1]]]


UNAVAILABLE: list[tuple[str, Any]] = [
    ("use_mtp", True),
    ("speculation_type", "dflash"),
    ("assistant_ensemble_weight", 0.5),
    ("cache_implementation", "paged"),
]


@pytest.mark.parametrize(("name", "value"), UNAVAILABLE, ids=[name for name, _ in UNAVAILABLE])
def test_what_is_not_available_is_refused_by_name(name: str, value: Any) -> None:
    model = counting_table()
    with pytest.raises(NotImplementedError, match=f"`{name}`.* is not available in this version"):
        generate(model, IDS, **{name: value})
    assert model.calls == []


def test_none_turns_beams_off() -> None:
    model = counting_table(20)
    model.generation_config = GenerationConfig(num_beams=2)
    expected = generate_tokens(counting_table(20), IDS, max_new_tokens=3)
    assert torch.equal(generate_tokens(model, IDS, num_beams=None, max_new_tokens=3), expected)


def test_a_refused_setting_may_come_from_the_model() -> None:
    model = counting_table()
    model.generation_config = GenerationConfig(use_mtp=True)
    with pytest.raises(NotImplementedError, match="`use_mtp`=True: multi-token prediction is not available"):
        generate(model, IDS)


def test_models_with_a_loop_of_their_own_are_refused() -> None:
    class Own(transformers.GPT2LMHeadModel):
        def _sample(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    model = Own(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(NotImplementedError, match="`model`=Own: its own `_sample` replaces transformers'"):
        generate(model, IDS, max_new_tokens=2)


ROWS = torch.ones(2, 3, dtype=torch.long)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"inputs": [[1, 2]]}, TypeError, "`input_ids` must be a tensor, got list"),
    ({"inputs": torch.ones(2, 3)}, TypeError, "`input_ids` must hold integers, got torch.float32"),
    (
        {"inputs": torch.tensor([1, 2])},
        ValueError,
        r"`input_ids` must have shape \(batch_size, prompt_length\), .*\(2,\)",
    ),
    ({"inputs": torch.ones(2, 0, dtype=torch.long)}, ValueError, r"`input_ids` must have shape .* got \(2, 0\)"),
    ({"inputs": torch.ones(0, 2, dtype=torch.long)}, ValueError, r"`input_ids` must have shape .* got \(0, 2\)"),
    (
        {"inputs": torch.ones(1, 2, dtype=torch.long, device="meta")},
        ValueError,
        "`input_ids` must be on the model's device",
    ),
    ({"inputs": IDS, "input_ids": IDS}, ValueError, "`inputs` and `input_ids` are the same argument"),
    ({"inputs": None}, ValueError, "`bos_token_id` must be set where no `input_ids` are given"),
    ({"generation_config": {"top_k": 3}}, TypeError, "`generation_config` must be a GenerationConfig, got dict"),
    ({"temprature": 0.7}, ValueError, "temprature"),
    ({"attention_mask": ROWS[:, :2]}, ValueError, "`attention_mask` must have the shape of `input_ids`"),
    ({"attention_mask": ROWS[None]}, ValueError, "`attention_mask` must have the shape of `input_ids`"),
    ({"attention_mask": [[1, 1, 1]] * 2}, TypeError, "`attention_mask` must be a tensor, got list"),
    ({"max_new_tokens": 0}, ValueError, "`max_new_tokens` must be a 64-bit integer >= 1, got 0"),
    ({"max_new_tokens": 2.5}, ValueError, "`max_new_tokens` must be a 64-bit integer"),
    ({"max_length": 3}, ValueError, r"`max_length` must be larger than the length of `input_ids` \(3\), got 3"),
    ({"temperature": -1.0}, ValueError, "`temperature` must be a finite number >= 0"),
    ({"temperature": float("nan")}, ValueError, "`temperature` must be"),
    ({"temperature": "hot"}, ValueError, "`temperature` must be"),
    (
        {"temperature": [0.5, 0.5, 0.5]},
        ValueError,
        r"`temperature` must hold one value per row \(2\), got shape \(3,\)",
    ),
    ({"top_k": -1}, ValueError, "`top_k` must be"),
    ({"top_k": 2.5}, ValueError, "`top_k` must be"),
    ({"top_p": 1.5}, ValueError, "`top_p` must be a number in"),
    ({"min_p": 1.5}, ValueError, "`min_p` must be"),
    ({"typical_p": 0.0}, ValueError, "`typical_p` must be"),
    ({"epsilon_cutoff": 1.0}, ValueError, "`epsilon_cutoff` must be"),
    ({"eta_cutoff": -0.1}, ValueError, "`eta_cutoff` must be"),
    ({"top_n_sigma": -0.5}, ValueError, "`top_n_sigma` must be"),
    ({"top_h": 0.0}, ValueError, "`top_h` must be"),
    ({"repetition_penalty": 0}, ValueError, "`repetition_penalty` must be"),
    ({"presence_penalty": float("inf")}, ValueError, "`presence_penalty` must be"),
    ({"frequency_penalty": "x"}, ValueError, "`frequency_penalty` must be"),
    ({"no_repeat_ngram_size": -2}, ValueError, "`no_repeat_ngram_size` must be"),
    ({"do_sample": "yes"}, ValueError, "`do_sample` must be a boolean, got 'yes'"),
    ({"do_sample": [True]}, ValueError, "`do_sample` must hold one value per row"),
    ({"do_sample": [1, 0]}, TypeError, "`do_sample` must hold bools, got torch.int64"),
    (
        {"num_return_sequences": 2, "do_sample": False},
        ValueError,
        "`num_return_sequences` must be 1 without do_sample=True",
    ),
    ({"num_return_sequences": 2, "top_p": [0.5] * 3}, ValueError, r"`top_p` must hold one value per prompt \(2\) or"),
    ({"seed": -1}, ValueError, "`seed` must be an integer in"),
    ({"seed": 2**64}, ValueError, "`seed` must be an integer in"),
    ({"seed": 1.5}, ValueError, "`seed` must be"),
    ({"seed": [1, 2, 3]}, ValueError, r"`seed` must be an int or one per returned row \(2\), got 3"),
    ({"seed": 1, "generator": torch.Generator()}, ValueError, "`seed` and `generator` exclude each other"),
    ({"generator": 3}, TypeError, "`generator` must be a torch.Generator, got int"),
    ({"logits_processor": lambda ids, scores: scores}, TypeError, "`logits_processor` must be a list of callables"),
    ({"logits_processor": [3]}, TypeError, "`logits_processor` must be a list of callables"),
    ({"stopping_criteria": lambda ids, scores: True}, TypeError, "`stopping_criteria` must be a list of callables"),
    ({"output_logprobs": True}, ValueError, "`output_logprobs=True` needs `return_dict_in_generate=True`"),
    ({"top_logprobs": 3}, ValueError, "`top_logprobs`=3 needs `output_logprobs=True`"),
    ({"top_logprobs": -1}, ValueError, "`top_logprobs` must be"),
    ({"on_invalid": "ignore"}, ValueError, "`on_invalid` must be one of 'raise', 'greedy', 'eos', got 'ignore'"),
    ({"on_invalid": "eos"}, ValueError, "`on_invalid`='eos' needs `eos_token_id`"),
    ({"eos_token_id": 4, "pad_token_id": -1}, ValueError, "`pad_token_id` must be >= 0 .* got -1"),
    ({"past_key_values": ((IDS, IDS),)}, TypeError, "`past_key_values` must be a cache object, got tuple"),
    (
        {"num_beams": 2, "prompt_lookup_num_tokens": 3},
        ValueError,
        "`num_beams` must be 1 with `prompt_lookup_num_tokens`",
    ),
    (
        {"num_beams": 4, "assistant_model": torch.nn.Identity()},
        ValueError,
        "`num_beams` must be 1 with `assistant_model`",
    ),
    (
        {"force_words_ids": [[3]], "assistant_early_exit": 1},
        ValueError,
        "`force_words_ids` must be None with `assistant_",
    ),
    ({"stop_strings": "x"}, ValueError, "`stop_strings` need the model's tokenizer"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), WRONG, ids=[f"{n}-{next(iter(w[0]))}" for n, w in enumerate(WRONG)]
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    calls: list[int] = []
    model = hf_model("llama")
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    before = torch.get_rng_state()
    try:
        with pytest.raises(error, match=message):
            generate(
                model,
                **{
                    "inputs": IDS,
                    "do_sample": True,
                    **({} if "max_length" in arguments else {"max_new_tokens": 2}),
                    **arguments,
                },
            )
    finally:
        handle.remove()
    assert calls == []
    assert torch.equal(torch.get_rng_state(), before)


def test_unused_arguments_of_a_plain_module_are_named() -> None:
    with pytest.raises(ValueError, match="`model` does not use these arguments: `temprature`, `attention_mask`"):
        generate(counting_table(), IDS, temprature=1.0, attention_mask=ROWS)


def test_compile_config_changes_nothing_but_warns(caplog: pytest.LogCaptureFixture) -> None:
    model = hf_model("llama")
    plain = generate_tokens(model, IDS, max_new_tokens=3, pad_token_id=0)
    with caplog.at_level(logging.WARNING):
        compiled = generate_tokens(model, IDS, max_new_tokens=3, pad_token_id=0, compile_config=CompileConfig())
    assert torch.equal(compiled, plain)
    assert "`compile_config` is not used" in caplog.text
