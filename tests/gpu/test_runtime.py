"""Captured steps on a GPU: tokens of eager calls and of transformers, reused captures, failures, launches, memory."""

from __future__ import annotations

import copy
import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from benchmarks import gpu_counters, gpu_models
from pygen.graph.cuda_graph import CAPTURES
from tests.generate.models import ENCODER_DECODERS, encoder_decoder, hf_model

DEVICE = torch.device("cuda")
PROMPTS = torch.randint(1, 100, (3, 20), generator=torch.Generator().manual_seed(0)).to(DEVICE)
IDS = PROMPTS[:, :5]
STEPS = 40
# The positions of the smallest bucket.
ROOM = 64
ENDS: dict[str, Any] = {"eos_token_id": [*range(10, 20)], "pad_token_id": 1}
BEAMS: dict[str, Any] = {"num_beams": 4, **ENDS}


def model_of(family: str) -> Any:
    if family not in ENCODER_DECODERS:
        return copy.deepcopy(hf_model(family)).to(DEVICE)
    model = copy.deepcopy(encoder_decoder(family)).to(DEVICE)
    model.generation_config.decoder_start_token_id = 0
    return model


def rng_state() -> Tensor:
    return torch.cuda.get_rng_state()


def tokens_of(runtime: str, model: Any, ids: Tensor = IDS, **settings: Any) -> tuple[Tensor, Tensor]:
    """Returns the tokens of a call, and the generator's state after it."""
    torch.manual_seed(3)
    tokens = pygen.generate(model, ids, runtime=runtime, **{"max_new_tokens": STEPS, **settings})
    assert isinstance(tokens, Tensor)
    return tokens, rng_state()


def check(model: Any, ids: Tensor = IDS, **settings: Any) -> None:
    eager, graph = (tokens_of(runtime, model, ids, **settings) for runtime in ("eager", "graph"))
    assert eager[0].equal(graph[0]) and eager[1].equal(graph[1])


# Settings that transformers also has.
SHARED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "penalties": {"do_sample": True, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    "copies": {"do_sample": True, "num_return_sequences": 2, **ENDS},
    "beams": BEAMS,
    "beams, no end": {"num_beams": 4},
    "beams, sampled": {**BEAMS, "do_sample": True, "top_k": 30, "temperature": 1.5},
    "beams, early": {**BEAMS, "early_stopping": True},
    "beams, never": {**BEAMS, "early_stopping": "never", "length_penalty": 2.0},
    "beams, short": {**BEAMS, "length_penalty": -1.5, "num_return_sequences": 3, "repetition_penalty": 1.3},
    "beams, long": {**BEAMS, "num_beams": 2, "min_new_tokens": 6, "length_penalty": 0.5},
}
SETTINGS: dict[str, dict[str, Any]] = {
    **SHARED,
    "seed": {"do_sample": True, "seed": 3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    "seeds": {"do_sample": True, "seed": [1, 2, 3], "temperature": [0.5, 1.0, 1.5]},
    "invalid": {"on_invalid": "eos", **ENDS, "min_new_tokens": 5},
    "beams, seed": {**BEAMS, "do_sample": True, "seed": 5},
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "t5"])
@pytest.mark.parametrize("name", SETTINGS)
def test_as_eager(family: str, name: str) -> None:
    check(model_of(family), **SETTINGS[name])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "t5"])
@pytest.mark.parametrize("name", SHARED)
def test_as_transformers(family: str, name: str) -> None:
    model = model_of(family)
    ours, state = tokens_of("graph", model, **SHARED[name])
    torch.manual_seed(3)
    theirs = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=STEPS, **SHARED[name])
    assert ours.equal(theirs) and state.equal(rng_state())


class Count:
    """Counts captures, their replays, and the seconds of the captures."""

    def __init__(self) -> None:
        self.made = self.replays = 0
        self.seconds = 0.0


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    kind, found = CAPTURES[DEVICE.type], Count()

    class Counted(kind):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any) -> None:
            gpu_counters.synchronize(DEVICE)
            start = time.perf_counter()
            super().__init__(*arguments)
            gpu_counters.synchronize(DEVICE)
            found.seconds += time.perf_counter() - start
            found.made += 1

        def replay(self) -> None:
            found.replays += 1
            super().replay()

    monkeypatch.setitem(CAPTURES, DEVICE.type, Counted)
    return found


def some_call(draw: random.Random) -> tuple[Tensor, dict[str, Any]]:
    """Draws a prompt and sampling settings that share one capture."""
    ids = PROMPTS[:, : draw.randrange(1, 21)]
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": draw.choice([draw.uniform(0.3, 2.0), [0.5, 1.0, 2.0]]),
        "top_p": draw.uniform(0.3, 0.99),
        "repetition_penalty": draw.uniform(0.8, 1.6),
        "seed": draw.choice([draw.randrange(2**40), [draw.randrange(2**40) for _ in range(3)]]),
        "eos_token_id": draw.sample(range(101), draw.randrange(1, 4)),
        "pad_token_id": 0,
        "max_new_tokens": draw.randrange(2, ROOM + 2 - ids.shape[1]),
    }
    return ids, settings


def some_search(draw: random.Random) -> tuple[Tensor, dict[str, Any]]:
    """Draws the same for four beams; the number of EOS ids is part of the capture."""
    ids, settings = some_call(draw)
    settings |= {
        "num_beams": 4,
        "temperature": draw.uniform(0.3, 2.0),
        "eos_token_id": draw.sample(range(101), 2),
        "length_penalty": draw.uniform(-2.0, 2.0),
        "early_stopping": draw.choice([False, "never"]),
        "max_new_tokens": draw.randrange(2, ROOM - ids.shape[1]),
    }
    return ids, settings


@pytest.mark.parametrize(("some", "replays"), [(some_call, 1000), (some_search, 300)])
def test_one_capture_serves_every_call(some: Any, replays: int, count: Count) -> None:
    model, draw = model_of("llama"), random.Random(0)
    for _ in range(20 * replays):
        ids, settings = some(draw)
        check(model, ids, **settings)
        if count.replays >= replays:
            break
    assert count.replays >= replays and count.made == 1


def test_models_alternate(count: Count) -> None:
    models, draw = [model_of(family) for family in ("llama", "gpt2", "t5")], random.Random(0)
    for number in range(24):
        settings = {**some_call(draw)[1], "max_new_tokens": STEPS}
        check(models[number % 3], **settings)
    for model in models:
        check(model, **BEAMS)
    assert count.made == 2 * len(models)


class Failing(pygen.BaseStreamer):
    def __init__(self, at: int) -> None:
        self.left = at

    def put(self, value: Tensor) -> None:
        if self.left == 0:
            raise KeyError("from the streamer")
        self.left -= 1

    def end(self) -> None:
        pass


@pytest.mark.parametrize("at", [1, 2, 7, STEPS])
def test_a_failing_streamer(at: int, count: Count) -> None:
    """The generator's state equals the eager path's, and the next call is right and reuses the capture."""
    model = model_of("llama")
    check(model, do_sample=True)
    states = []
    for runtime in ("eager", "graph"):
        with pytest.raises(KeyError, match="from the streamer"):
            tokens_of(runtime, model, do_sample=True, streamer=Failing(at))
        states.append(rng_state())
    assert states[0].equal(states[1])
    check(model, do_sample=True)
    assert count.made == 1


@pytest.mark.parametrize(("family", "settings"), [("llama", {"do_sample": True}), ("llama", BEAMS), ("t5", {})])
def test_release_gives_all_memory_back(family: str, settings: dict[str, Any]) -> None:
    model, allocated = model_of(family), []
    # Run eager calls in between, so that every count includes the libraries' workspaces.
    for runtime in ("eager", "graph", "graph"):
        tokens_of(runtime, model, **settings)
        tokens_of("eager", model, **settings)
        allocated.append(gpu_counters.allocated_bytes(DEVICE))
    pygen.release(model)
    tokens_of("eager", model, **settings)
    before, held, again = allocated
    assert before < held == again and gpu_counters.allocated_bytes(DEVICE) == before


@pytest.mark.parametrize("key", gpu_models.MODELS)
@pytest.mark.parametrize("settings", [{"do_sample": True}, {"num_beams": 4}])
def test_seconds_of_a_capture(key: str, settings: dict[str, Any], count: Count) -> None:
    """The limit is two seconds on an H100."""
    model = gpu_models.load(key, False, DEVICE)
    tokens_of("graph", model, **settings, max_new_tokens=4)
    pygen.release(model)
    print(f"{gpu_models.MODELS[key][0]}, {settings}: captured in {count.seconds:.2f} s")
    assert count.made == 1 and count.seconds < 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    ("settings", "launches"),
    [
        ({}, 1),
        ({"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2}, 1),
        ({"num_beams": 4}, 3),
        ({"num_beams": 4, "do_sample": True}, 3),
    ],
)
def test_launches_and_waits_beyond_the_forward(family: str, settings: dict[str, Any], launches: int) -> None:
    """A token takes one graph launch with little more than the forward in it, and the host never waits."""
    model = model_of(family)
    with gpu_counters.watched_captures(DEVICE) as watched:
        tokens_of("graph", model, **settings)
    found = gpu_counters.per_token(
        lambda steps: tokens_of("graph", model, max_new_tokens=steps, **settings), STEPS, STEPS - 10, DEVICE
    )
    assert watched.count == 1 and watched.forward.kernels > 0
    assert found.graphs == 1
    assert found.launches + watched.rest.kernels <= launches
    assert found.waits == 0


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, BEAMS])
def test_compiled(settings: dict[str, Any]) -> None:
    check(model_of("llama"), compile_config=pygen.CompileConfig(), **settings)
