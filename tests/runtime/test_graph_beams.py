"""Captured steps with beams against eager ones: the same hypotheses, caches and noise, for any settings."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen.generate import generate
from tests.generate.models import ENCODER_DECODERS, FAMILIES, VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens
from tests.runtime.calls import Collect, poisoned, same

STEPS = 9
PROMPTS = torch.randint(1, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(0))
PADDED = {"attention_mask": torch.tensor([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5])}
# Enough end tokens that hypotheses end at every step.
ENDS: dict[str, Any] = {"eos_token_id": list(range(40, 60)), "pad_token_id": 0}

pytestmark = pytest.mark.usefixtures("capture", "one_thread")


def run(runtime: str, model: Any, inputs: Tensor | None = PROMPTS, **settings: Any) -> dict[str, Any]:
    """Returns all results and side effects of a call, with the cache layer by layer."""
    torch.manual_seed(5)
    settings = {"max_new_tokens": STEPS, "num_beams": 3, "return_dict_in_generate": True, **settings}
    streamer = settings.setdefault("streamer", None)
    try:
        output: Any = generate(model, inputs, runtime=runtime, **settings)
    except (RuntimeError, KeyError) as error:
        # Only the eager path still has the logits and names the first NaN.
        return {"error": re.sub(", first at token id [0-9]+", "", str(error)), "generator": torch.get_rng_state()}
    if isinstance(output, Tensor):
        return {"sequences": output, "generator": torch.get_rng_state()}
    names = ("sequences", "beam_indices", "finish_reason", "logprobs", "top_logprobs")
    found = {name: getattr(output, name) for name in names}
    cache = output.past_key_values
    caches = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
    found["cache"] = [(layer.keys, layer.values) for part in caches for layer in part.layers]
    events = None if streamer is None else streamer.events
    return {**found, "events": events, "generator": torch.get_rng_state()}


def check(model: Any, inputs: Tensor | None = PROMPTS, **settings: Any) -> dict[str, Any]:
    """Compares the graph path with the eager one; returns their common result."""
    make = settings.pop("streamer", lambda: None)
    eager, graph = (run(runtime, model, inputs, streamer=make(), **settings) for runtime in ("eager", "graph"))
    for name in {*eager, *graph}:
        assert same(eager[name], graph[name]), (name, eager[name], graph[name])
    return eager


SETTINGS: dict[str, dict[str, Any]] = {
    "search": {},
    "ends": ENDS,
    "early": {**ENDS, "early_stopping": True},
    "never": {**ENDS, "early_stopping": "never", "length_penalty": 2.0},
    "short": {**ENDS, "length_penalty": -1.0},
    "returned": {**ENDS, "num_return_sequences": 2, "num_beams": 4},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "presence_penalty": 0.3, **ENDS},
    "bans": {"suppress_tokens": [3, 50], "begin_suppress_tokens": [4], "sequence_bias": [[[7], 2.0]], **ENDS},
    "segments": {"min_new_tokens": 4, **ENDS},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9, **ENDS},
    "seed": {"do_sample": True, "seed": 3, "top_n_sigma": 2.0, **ENDS},
    "seeds": {"do_sample": True, "seed": [1, 2**64 - 1, 3], "typical_p": 0.95},
    "one end": {"eos_token_id": 5, "pad_token_id": 5},
    "no token for padding": {"eos_token_id": None, "pad_token_id": None},
    "one token": {"max_new_tokens": 1},
    "a bucket filled": {"max_new_tokens": 58, **ENDS},
    "log-probabilities": {"output_logprobs": True, "top_logprobs": 3, **ENDS},
    "log-probabilities of segments": {"output_logprobs": True, "min_new_tokens": 4, "repetition_penalty": 1.4, **ENDS},
    "log-probabilities of draws": {"output_logprobs": True, "do_sample": True, "top_k": 9, "temperature": 0.7, **ENDS},
    "log-probabilities of the model": {"output_logprobs": "raw", "top_logprobs": 2, "repetition_penalty": 1.4, **ENDS},
    "log-probabilities, a bucket filled": {"max_new_tokens": 58, "output_logprobs": True},
    "tokens only": {"return_dict_in_generate": False, **ENDS},
    "static": {"cache_implementation": "static", "return_dict_in_generate": False},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_as_eager(name: str, padded: bool) -> None:
    check(hf_model("llama"), **SETTINGS[name], **(PADDED if padded else {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [ENDS, {"do_sample": True, "num_beams": 4}])
def test_families(family: str, settings: dict[str, Any]) -> None:
    check(hf_model(family), **settings, **PADDED)


@pytest.mark.parametrize("allowed", [[], [5], [5, 6]])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_what_comes_after_the_end_changes_nothing(allowed: list[int], early_stopping: bool) -> None:
    """With few allowed tokens beams die, and the pool of finished hypotheses has space for late ones."""
    bans = [token for token in range(VOCAB_SIZE) if token not in (*allowed, 7)]
    for steps in (2, STEPS):
        found = check(
            hf_model("llama"), suppress_tokens=bans, eos_token_id=7, pad_token_id=0, max_new_tokens=steps,
            num_return_sequences=3, early_stopping=early_stopping,
        )  # fmt: skip
    assert allowed or found["sequences"].shape[1] == 7


def test_a_capture_serves_later_calls(capture: Any) -> None:
    """One capture serves other penalties, seeds, ends, limits, prompts and masks."""
    model = hf_model("qwen2")
    first: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1, "pad_token_id": 0}
    calls: list[dict[str, Any]] = [
        {**first, "eos_token_id": [5, 6], "seed": 1},
        {**first, "eos_token_id": [40, 41], "seed": 2, "length_penalty": -2.0, "max_new_tokens": 20},
        {**first, "eos_token_id": [50, 6], "seed": [4, 5, 6], "early_stopping": "never", "temperature": 2.0, **PADDED},
        {**first, "eos_token_id": [5, 6], "seed": 1},
    ]
    for number, settings in enumerate(calls):
        check(model, PROMPTS if number % 2 == 0 else PROMPTS[:, :2], **settings)
    assert capture.made == 1
    check(model, early_stopping=True, **calls[0])
    assert capture.made == 2


def test_beams_and_rows_of_one_size_share_a_cache(capture: Any) -> None:
    model = hf_model("gpt2")
    for _ in range(2):
        check(model, **ENDS)
        check(model, PROMPTS[:1], num_beams=9)
        rows = PROMPTS.repeat_interleave(3, dim=0)
        eager, graph = (generate_tokens(model, rows, max_new_tokens=STEPS, runtime=name) for name in ("eager", "graph"))
        assert torch.equal(eager, graph)
    assert capture.made == 3


class Tokens:
    """A streamer that receives tokens only, not why texts end."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.events.append(value.tolist())

    def end(self) -> None:
        self.events.append("end")


@pytest.mark.parametrize("streamer", [Collect, Tokens])
@pytest.mark.parametrize("settings", [{"output_logprobs": True}, ENDS, {"do_sample": True, **ENDS}])
def test_streamers(streamer: Any, settings: dict[str, Any]) -> None:
    for row in range(3):
        check(hf_model("llama"), PROMPTS[row : row + 1], streamer=streamer, **settings)


@pytest.mark.parametrize("event", [0, 2])
def test_a_failing_streamer(event: int) -> None:
    def fail() -> None:
        raise KeyError("from the streamer")

    model = hf_model("llama")
    found = check(model, PROMPTS[:1], streamer=lambda: Collect(event, fail), do_sample=True)
    assert found["error"] == "'from the streamer'"
    check(model, PROMPTS[:1], do_sample=True)


class SetAfter(threading.Event):
    """Becomes set after a number of checks. Both runtimes check before the first step and then once per step."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancelled(steps: int) -> None:
    """The current step ends every continuation."""
    eager, graph = (run(name, hf_model("llama"), cancel=SetAfter(1 + steps)) for name in ("eager", "graph"))
    assert all(same(eager[name], graph[name]) for name in eager)
    assert eager["sequences"].shape == (3, 6 + steps + 1) and eager["finish_reason"] == ["stop"] * 3


def test_cancelled_before_it_begins() -> None:
    cancel = threading.Event()
    cancel.set()
    assert check(hf_model("llama"), cancel=cancel)["sequences"].shape == (3, 6)


def test_a_time_limit() -> None:
    """The time is over at once: every continuation of the first step ends."""
    found = check(hf_model("llama"), max_time=1e-9)
    assert found["sequences"].shape == (3, 7) and found["finish_reason"] == ["stop"] * 3


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("on_invalid", ["raise", "greedy"])
def test_invalid_rows(step: int, on_invalid: str) -> None:
    # A token of the best beam.
    model = poisoned(int(run("eager", hf_model("llama"))["sequences"][0, 6 + step]))
    ways: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "seed": 3})
    for settings in ways:
        found = check(model, on_invalid=on_invalid, **settings)
        assert on_invalid == "raise" or "error" not in found
    model.load_state_dict(hf_model("llama").state_dict())
    check(model, **ENDS)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_encoder_decoder_models(family: str) -> None:
    """The beams of a prompt share the encoder's output."""
    model = encoder_decoder(family)
    features = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(1))
    inputs = {"input_features": features} if family == "whisper" else {"input_ids": PROMPTS, **PADDED}
    for settings in (ENDS, {"do_sample": True, "seed": 2, **ENDS}, {"num_return_sequences": 2, "length_penalty": 2.0}):
        check(model, None, decoder_start_token_id=1, **inputs, **settings)
    pygen.release(model)
