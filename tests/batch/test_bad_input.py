"""Prompts and settings that cannot run: each error names what is wrong, and other prompts go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pygen
from tests.batch.models import POSITIONS, VOCAB_SIZE, small_model
from tests.batch.settings import tokenizer
from tests.batch.texts import prompts, tokens_alone

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "empty ids": ([], ValueError, "a prompt must hold at least one id, got none"),
    "empty tensor": (torch.zeros(0, dtype=torch.int64), ValueError, "a prompt must hold at least one id"),
    "empty text": ({"prompt": ""}, ValueError, "a prompt must hold at least one id"),
    "neither": ({"temperature": 0.5}, ValueError, "must hold one of `prompt` and `input_ids`, got neither"),
    "both": ({"prompt": "w1", "input_ids": [1]}, ValueError, "got `prompt` and `input_ids`"),
    "None": (None, TypeError, "a prompt must be a text, token ids or a dict with either, got NoneType"),
    "a number": (5, TypeError, "got int"),
    "bytes": (b"w1", TypeError, "got bytes"),
    "texts": (["w1", "w2"], TypeError, "a prompt must hold integer ids, got 'w1'"),
    "floats": ([1, 2.0], TypeError, "a prompt must hold integer ids, got 2.0"),
    "bools": ([True], TypeError, "a prompt must hold integer ids, got True"),
    "float tensor": (torch.ones(2), TypeError, "a prompt must hold integer ids, got torch.float32"),
    "two texts": (torch.ones(2, 3, dtype=torch.int64), ValueError, r"ids of one text, got a tensor of shape \(2, 3\)"),
    "an id too large": ([1, VOCAB_SIZE], ValueError, "must hold ids of the 101 that the model embeds, got 101"),
    "a negative id": ([1, -1], ValueError, "must hold ids of the 101 that the model embeds, got -1"),
    "too long": ([1] * (POSITIONS + 1), ValueError, rf"`max_length` must be larger than .*\({POSITIONS + 1}\)"),
    "longer than max_length": (
        {"input_ids": [1] * 50, "max_new_tokens": 20},
        ValueError,
        "`max_length` must be at least the 69 positions",
    ),
    "no tokens": ({"max_new_tokens": 0}, ValueError, "`max_new_tokens`"),
    "a float of tokens": ({"max_new_tokens": 2.5}, ValueError, "`max_new_tokens`"),
    "a wrong value": ({"top_p": 1.5}, ValueError, r"`top_p` must be a number in \[0, 1\]"),
    "a wrong type": ({"temperature": "hot"}, ValueError, "`temperature`"),
    "an unknown setting": ({"temprature": 0.5}, ValueError, "temprature"),
    "an unknown id in a setting": ({"sequence_bias": {(VOCAB_SIZE,): 1.0}}, ValueError, "vocabulary size"),
    "two values for one row": ({"temperature": [0.5, 0.6]}, ValueError, "`temperature` must hold"),
    "two seeds for one row": ({"seed": [1, 2]}, ValueError, "`seed` must be an int or one per returned row"),
    "beams": ({"num_beams": 2, "do_sample": False}, NotImplementedError, "beam search is not available for rows"),
    "drafts": ({"prompt_lookup_num_tokens": 3}, NotImplementedError, "assisted generation is not available"),
    "contrastive": (
        {"penalty_alpha": 0.5, "top_k": 4, "do_sample": False},
        NotImplementedError,
        "contrastive search is not available",
    ),
    "an assistant": ({"assistant_model": object()}, NotImplementedError, "`assistant_model` is not available"),
    "a streamer": ({"streamer": object()}, NotImplementedError, "`streamer` is not available"),
    "guidance": ({"guidance_scale": 2.0}, NotImplementedError, "`guidance_scale` is not available"),
    "scores": ({"output_scores": True}, NotImplementedError, "`output_scores` is not available"),
    "logits": ({"output_logits": True}, NotImplementedError, "`output_logits` is not available"),
    "healing": ({"token_healing": True}, NotImplementedError, "`token_healing` is not available"),
    "a mask": ({"attention_mask": torch.ones(1, 3)}, NotImplementedError, "`attention_mask` is not available"),
    "positions": ({"position_ids": torch.ones(1, 3)}, NotImplementedError, "`position_ids`"),
    "embeddings": ({"inputs_embeds": torch.ones(1, 3, 32)}, NotImplementedError, "`inputs_embeds`"),
    "no cache": ({"use_cache": False}, NotImplementedError, "`use_cache`=False is not available"),
    "another cache": ({"cache_implementation": "static"}, NotImplementedError, "`cache_implementation`='static'"),
    "no tokenizer": (
        {"stop_strings": "w1", "tokenizer": None},
        ValueError,
        "`stop_strings` need the model's tokenizer",
    ),
    "top without logprobs": ({"top_logprobs": 2}, ValueError, "`top_logprobs`=2 needs `output_logprobs=True`"),
    "an id to end by": ({"on_invalid": "eos"}, ValueError, "needs `eos_token_id` >= 0, got None"),
    "one processor": ({"logits_processor": max}, TypeError, "`logits_processor` must be a list of callables"),
    "a processor for copies": (
        {"logits_processor": [lambda ids, scores: scores], "num_return_sequences": 2},
        NotImplementedError,
        r"`logits_processor\[0\]` .* give the prompt once per sequence",
    ),
    "a prefix function that fails": (
        {"prefix_allowed_tokens_fn": lambda batch_id, ids: 1 / 0},
        ZeroDivisionError,
        "division",
    ),
}


def complete(prompt: Any) -> Any:
    """A dict of settings alone gets a prompt."""
    if not isinstance(prompt, dict) or prompt.keys() & {"prompt", "input_ids"} or prompt == {"temperature": 0.5}:
        return prompt
    return {"input_ids": [1, 2, 3], "do_sample": True, "seed": 1, **prompt}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_cannot_run_is_its_own_result(name: str) -> None:
    bad, kind, words = REFUSED[name]
    batch = [*prompts()[:2], complete(bad), *prompts()[2:4]]
    options: dict[str, Any] = {"rows": 2, "max_length": 55 if "max_length" in name else None}
    results = [*pygen.generate_batch(small_model("llama"), batch, tokenizer=tokenizer(), **options)]
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    good = [result.token_ids for result in results if result.index != 2]
    assert good == [tokens_alone(index) for index in range(4)]
    failed = results[2]
    assert (failed.finish_reason, failed.token_ids) == ("error", [])
    with pytest.raises(kind, match=words):
        raise failed.error or AssertionError


def test_an_engine_raises_them_in_submit() -> None:
    with pygen.Engine(small_model("llama"), rows=2, tokenizer=tokenizer(), max_length=55) as engine:
        before = engine.submit(prompts()[0])
        for name, (bad, kind, words) in REFUSED.items():
            # These need logits.
            if name in ("an unknown id in a setting", "a prefix function that fails"):
                continue
            with pytest.raises(kind, match=words):
                engine.submit(complete(bad))
        after = engine.submit(prompts()[1])
    assert [before.result().token_ids, after.result().token_ids] == [tokens_alone(0), tokens_alone(1)]


SHARED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "value": ({"top_p": 1.5}, ValueError, r"`top_p` must be a number in \[0, 1\]"),
    "unknown": ({"temprature": 0.5}, ValueError, "temprature"),
    "mode": ({"num_beams": 4}, NotImplementedError, "beam search is not available for rows"),
    "processor": ({"logits_processor": [lambda ids, scores: scores]}, NotImplementedError, "give each prompt its own"),
    "generator": ({"generator": 5}, TypeError, "`generator` must be a torch.Generator, got int"),
    "rows": ({"rows": 0}, ValueError, "`rows` must be >= 1, got 0"),
    "piece": ({"prefill_chunk_size": 0}, ValueError, "`prefill_chunk_size` must be >= 1, got 0"),
    "length": ({"max_length": 0}, ValueError, "`max_length` must be >= 1, got 0"),
    "positions": ({"prefix_positions": -1}, ValueError, "`prefix_positions` must be >= 0, got -1"),
    "rows type": ({"rows": 2.5}, TypeError, "`rows`"),
    "runtime": ({"runtime": "fast"}, ValueError, "`runtime`"),
}


@pytest.mark.parametrize("start", [lambda model, **s: pygen.generate_batch(model, [[1]], **s), pygen.Engine])
@pytest.mark.parametrize("name", SHARED)
def test_settings_of_all_prompts_are_refused_at_once(name: str, start: Any) -> None:
    settings, kind, words = SHARED[name]
    with pytest.raises(kind, match=words):
        start(small_model("llama"), **settings)


@pytest.mark.parametrize("wrong", ["w1 w2", b"w1", {"input_ids": [1]}, 5, None])
def test_prompts_are_an_iterable_of_prompts(wrong: Any) -> None:
    with pytest.raises(TypeError, match="`prompts` must be an iterable of prompts"):
        pygen.generate_batch(small_model("llama"), wrong)


def test_max_queued_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="`max_queued` must be >= 1, got 0"):
        pygen.Engine(small_model("llama"), max_queued=0)


def test_the_check_of_settings_draws_nothing_and_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    model, generator = small_model("llama"), torch.Generator().manual_seed(3)
    states = generator.get_state(), torch.get_rng_state()
    results = pygen.generate_batch(
        model, [{"input_ids": [1], "max_new_tokens": 1}], do_sample=True, generator=generator
    )
    assert torch.equal(generator.get_state(), states[0])
    assert next(results).error is None
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not torch.equal(generator.get_state(), states[0])
    assert not recwarn.list


def test_one_token_and_eos_inside_the_prompt() -> None:
    model = small_model("llama")
    prompt = {**prompts()[0], "max_new_tokens": 1}
    first = tokens_alone(0)[0]
    inside = {**prompts()[2], "eos_token_id": prompts()[2]["input_ids"][-1], "pad_token_id": 0}
    one, end, other = pygen.generate_batch(model, [prompt, {**prompt, "eos_token_id": first}, inside], rows=2)
    assert (one.token_ids, one.finish_reason) == ([first], "length")
    assert (end.token_ids, end.finish_reason) == ([first], "eos")
    assert other.token_ids == tokens_alone(2)


def test_settings_of_a_prompt_override_those_of_all() -> None:
    model = small_model("llama")
    config = pygen.GenerationConfig(do_sample=True, max_new_tokens=3, seed=5)
    own = {"input_ids": [1, 2], "seed": 9, "max_new_tokens": 4}
    off = {"input_ids": [1, 2], "top_k": None, "generation_config": pygen.GenerationConfig(max_new_tokens=2)}
    shared, changed, replaced = pygen.generate_batch(model, [[1, 2], own, off], config, top_k=1)
    assert (len(shared.token_ids), shared.seed) == (3, 5)
    assert (len(changed.token_ids), changed.seed) == (4, 9)
    assert (len(replaced.token_ids), replaced.seed) == (2, None)


def test_max_length_bounds_a_text_as_in_generate() -> None:
    model, ids = small_model("llama"), [1, 2, 3]
    (result,) = pygen.generate_batch(model, [ids], max_length=12)
    alone = pygen.generate(model, torch.tensor([ids]), max_length=12)
    assert isinstance(alone, torch.Tensor)
    assert result.token_ids == alone[0, 3:].tolist()
    assert len(result.token_ids) == 9


def test_submit_from_a_callable_is_refused() -> None:
    def submits(ids: torch.Tensor, scores: object) -> bool:
        engine.submit([1])
        return False

    with pygen.Engine(small_model("llama"), rows=1, max_queued=1, max_new_tokens=4) as engine:
        result = engine.submit([1, 2], stopping_criteria=[submits]).result()
    assert "`submit` must not be called from a callable" in str(result.error)
