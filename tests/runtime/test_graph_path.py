"""Captured steps against eager ones: the same tokens, records and noise, for any settings."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import pygen
from pygen.generate import generate
from pygen.plan import pipeline
from tests.generate.models import FAMILIES, VOCAB_SIZE, hf_model
from tests.helpers.generation import generate_tokens
from tests.runtime.calls import Collect, poisoned, same

STEPS = 9
PROMPTS = torch.randint(1, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(0))
PADDED = {"attention_mask": torch.tensor([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5])}


pytestmark = pytest.mark.usefixtures("capture", "one_thread")


def run(runtime: str, model: Any, inputs: Tensor = PROMPTS, **settings: Any) -> dict[str, Any]:
    """Returns all results and side effects of a call."""
    torch.manual_seed(5)
    streamer = settings.setdefault("streamer", Collect())
    settings = {"max_new_tokens": STEPS, "return_dict_in_generate": True, **settings}
    found: dict[str, Any] = {}
    try:
        output: Any = generate(model, inputs, runtime=runtime, **settings)
    except (RuntimeError, KeyError) as error:
        found["error"] = str(error)
    else:
        if isinstance(output, Tensor):
            return {"sequences": output}
        found = {name: getattr(output, name) for name in ("sequences", "finish_reason", "logprobs")}
        top = output.top_logprobs
        kept = output.kept
        found["kept"] = None if kept is None else [getattr(kept, name) for name in vars(kept)]
        found |= {"top": None if top is None else [*top], "length": output.past_key_values.get_seq_length()}
        assert type(output.past_key_values) is DynamicCache
    return {**found, "events": streamer.events, "generator": torch.get_rng_state()}


def check(model: Any, inputs: Tensor = PROMPTS, **settings: Any) -> dict[str, Any]:
    """Compares the graph path with the eager one; returns their common result."""
    eager, graph = (
        run(
            runtime,
            model,
            inputs,
            **{**settings, **({"streamer": settings["streamer"]()} if "streamer" in settings else {})},
        )
        for runtime in ("eager", "graph")
    )
    for name in {*eager, *graph}:
        assert same(eager[name], graph[name]), (name, eager[name], graph[name])
    return eager


EVERY_KNOB: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 30,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-3,
    "top_h": 0.9,
    "top_n_sigma": 3.0,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.1,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [3, 50],
    "begin_suppress_tokens": [4],
    "sequence_bias": [[[7], 2.0], [[9], -1.5]],
    "bad_words_ids": [[8]],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True},
    "every knob": EVERY_KNOB,
    "every knob, seed": {**EVERY_KNOB, "seed": 7},
    "seeds": {"do_sample": True, "seed": [1, 2**64 - 1, 3]},
    "per row": {
        "do_sample": [True, False, True],
        "temperature": [0.5, 1.0, 0.0],
        "top_k": [5, 0, 7],
        "top_p": [0.9, 1.0, 0.5],
        "repetition_penalty": [1.0, 1.5, 1.2],
        "no_repeat_ngram_size": [0, 2, 3],
    },
    "copies": {"do_sample": True, "num_return_sequences": 3, "seed": list(range(9)), "top_k": [3, 5, 9]},
    "log-probabilities": {"do_sample": True, "output_logprobs": True, "top_logprobs": 3},
    "log-probabilities of the tokens": {"output_logprobs": True},
    "log-probabilities of the model": {**EVERY_KNOB, "seed": 7, "output_logprobs": "raw", "top_logprobs": 3},
    "kept tokens": {**EVERY_KNOB, "seed": 7, "output_kept": True, "output_logprobs": "raw"},
    "kept tokens, greedy": {"output_kept": True},
    "kept tokens per row": {"do_sample": [True, False, True], "top_p": [0.9, 1.0, 0.5], "output_kept": True},
    "few kept tokens": {
        "do_sample": True,
        "top_p": 0.8,
        "temperature": 2.0,
        "output_kept": True,
        "kept_limit": 8,
        "eos_token_id": list(range(40, 60)),
        "pad_token_id": 0,
    },
    "segments": {"eos_token_id": list(range(40, 60)), "pad_token_id": 0, "min_new_tokens": 4, "do_sample": True},
    "one token": {"max_new_tokens": 1, "do_sample": True},
    "a bucket filled": {"max_new_tokens": 58, "do_sample": True},
    "pieces": {"prefill_chunk_size": 4},
    "static": {"cache_implementation": "static", "return_dict_in_generate": False},
    "compiled": {"compile_config": pygen.CompileConfig(backend="eager", mode="default")},
}


def test_a_bitmask_of_many_bans_is_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_MAX_LISTED", 4)
    found = [
        check(hf_model("llama"), suppress_tokens=banned, begin_suppress_tokens=list(range(50, 90)))["sequences"]
        for banned in (list(range(40)), list(range(30, 80)), [5])
    ]
    assert not any(bool(torch.isin(rows[:, 6], torch.arange(50, 90)).any()) for rows in found)
    assert not bool(torch.isin(found[1][:, 6:], torch.arange(30, 80)).any())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_as_eager(name: str, padded: bool) -> None:
    check(hf_model("llama"), **SETTINGS[name], **(PADDED if padded else {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2, "repetition_penalty": 1.2}])
def test_families(family: str, settings: dict[str, Any]) -> None:
    check(hf_model(family), **settings, **PADDED)


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}])
def test_rows_end_at_different_steps(step: int, settings: dict[str, Any]) -> None:
    """The end tokens are the given rows' tokens at `step`, so those rows end there at the latest."""
    model = hf_model("gpt2")
    free = run("eager", model, **settings)["sequences"][:, 6:]
    for rows in ([0], [1], [0, 1, 2]):
        eos = free[rows, step].tolist()
        found = check(model, eos_token_id=eos, pad_token_id=0, **settings)
        assert found["finish_reason"][rows[0]] == "eos"


@pytest.mark.parametrize("pad", [-1, 3])
def test_one_row_ends(pad: int) -> None:
    model = hf_model("llama")
    free = run("eager", model, PROMPTS[:1])["sequences"][0, 6:]
    for step in range(STEPS):
        check(model, PROMPTS[:1], eos_token_id=int(free[step]), pad_token_id=pad)


def test_embeddings_as_prompts() -> None:
    model = hf_model("llama")
    embeds = model.get_input_embeddings()(PROMPTS)
    eager, graph = (
        generate_tokens(model, inputs_embeds=embeds, do_sample=True, seed=3, max_new_tokens=STEPS, runtime=runtime)
        for runtime in ("eager", "graph")
    )
    assert torch.equal(eager, graph)


def test_a_capture_serves_later_calls(capture: Any) -> None:
    """One capture serves other values of the same knobs, other prompts, lengths and masks, and other ends."""
    model = hf_model("qwen2")
    first: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
    calls: list[dict[str, Any]] = [
        {**first, "eos_token_id": 5},
        {**first, "top_p": 0.3, "temperature": 2.0, "eos_token_id": [5, 6, 7], "max_new_tokens": 20},
        {**first, "temperature": [0.5, 1.0, 2.0], "repetition_penalty": [1.0, 2.0, 1.5], "eos_token_id": 50, **PADDED},
        {**first, "eos_token_id": 5},
    ]
    for number, settings in enumerate(calls):
        check(model, PROMPTS if number % 2 == 0 else PROMPTS[:, :2], pad_token_id=0, **settings)
    assert capture.made == 1
    check(model, pad_token_id=0, min_p=0.1, **calls[0])
    assert capture.made == 2


def test_models_alternate(capture: Any) -> None:
    models = [hf_model("llama"), hf_model("gpt2")]
    for seed in range(3):
        for model in models:
            check(model, do_sample=True, seed=seed)
    assert capture.made == 2


def test_a_generator_of_the_callers() -> None:
    for seed in range(2):
        states = []
        for runtime in ("eager", "graph"):
            generator = torch.Generator().manual_seed(seed)
            tokens = generate_tokens(
                hf_model("llama"), PROMPTS, do_sample=True, generator=generator, max_new_tokens=STEPS, runtime=runtime
            )
            states.append((tokens, generator.get_state()))
        assert same([*states[0]], [*states[1]])


def fail() -> None:
    raise KeyError("from the streamer")


@pytest.mark.parametrize("step", [0, 1, 4, STEPS - 1])
def test_a_failing_streamer(step: int, capture: Any) -> None:
    """The streamer's tokens and the generator's state equal the eager path's, and the next call is right."""
    model = hf_model("llama")
    assert check(model, do_sample=True, streamer=lambda: Collect(step, fail))["error"] == "'from the streamer'"
    check(model, do_sample=True)
    assert capture.made == 1


@pytest.mark.parametrize("step", [0, 1, 4])
def test_cancelled(step: int) -> None:
    model = hf_model("llama")
    # A row does not end in the overshoot.
    eos = int(run("eager", model)["sequences"][0, 6 + step + 1])
    found = []
    for runtime in ("eager", "graph"):
        cancel = threading.Event()
        streamer = Collect(step, cancel.set)
        found.append(run(runtime, model, cancel=cancel, streamer=streamer, eos_token_id=eos, pad_token_id=0))
    for name in found[0]:
        assert same(found[0][name], found[1][name]), name
    assert found[0]["sequences"].shape == (3, 6 + step + 1)


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize("on_invalid", ["raise", "greedy", "eos"])
def test_invalid_rows(step: int, on_invalid: str) -> None:
    # The first row generates it.
    model = poisoned(int(run("eager", hf_model("llama"))["sequences"][0, 6 + step]))
    settings: dict[str, Any] = {"on_invalid": on_invalid, "eos_token_id": 0, "pad_token_id": 0}
    assert ("error" in check(model, **settings)) == (on_invalid == "raise")
    check(model, do_sample=True, seed=3, **settings)
    if on_invalid == "raise":
        # The failed call leaves NaN in the cache, which no later call may read.
        model.load_state_dict(hf_model("llama").state_dict())
        check(model, eos_token_id=0, pad_token_id=0)


def test_an_invalid_prompt() -> None:
    model = copy.deepcopy(hf_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[int(PROMPTS[1, 2])] = torch.nan
    assert "at step 0 hold NaN" in check(model)["error"]


@pytest.mark.parametrize("copies", [{"do_sample": True, "num_return_sequences": 4}, {"num_beams": 4}])
def test_prompts_are_read_once(copies: dict[str, Any]) -> None:
    """The copies or beams of a prompt share its forward."""
    model, seen = copy.deepcopy(hf_model("llama")), []
    forward = model.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    model.model.forward = watched
    generate(model, PROMPTS, **copies, max_new_tokens=2, runtime="graph")
    assert seen[0] == (3, 6) and seen[1] == (12, 1)
