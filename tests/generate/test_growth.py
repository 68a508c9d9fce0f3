"""Memory for tokens grows as they come, so a large limit costs nothing up front."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen.ops import _growth as growth
from tests.generate.models import VOCAB_SIZE, cached_model, encoder_decoder, hf_model

PROMPTS = torch.tensor([[1, 2, 3, 4], [7, 7, 4, 9]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
RECORDS = {"return_dict_in_generate": True, "output_scores": True}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.3},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "no_repeat_ngram_size": 2, **RECORDS},
    "log-probabilities": {"output_logprobs": True, "top_logprobs": 2, "return_dict_in_generate": True},
    "a processor": {"logits_processor": [lambda input_ids, scores: scores - 0.1 * input_ids[:, -1:]]},
    "beams": {"num_beams": 3, "repetition_penalty": 1.3, **RECORDS},
    "beams that never stop early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    "drawn beams": {"num_beams": 3, "do_sample": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constraints": {"num_beams": 3, "force_words_ids": [[5]]},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"assistant_model": "llama", "do_sample": True, "top_k": 5, "num_assistant_tokens": 3},
}


class Collected:
    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.tokens.append(value)

    def end(self) -> None:
        """Does nothing: no text is buffered."""


def tensors_of(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = (output.sequences, output.scores, getattr(output, "logprobs", None), getattr(output, "top_logprobs", None))
    return [tensor for part in parts if part is not None for tensor in ([part] if isinstance(part, Tensor) else part)]


def run(model: Any, **settings: Any) -> list[Tensor]:
    if "assistant_model" in settings:
        settings["assistant_model"] = hf_model(settings["assistant_model"])
    inputs: dict[str, Any] = {"input_ids": PROMPTS, "attention_mask": MASK}
    if model is encoder_decoder("bart"):
        inputs["decoder_start_token_id"] = 1
    torch.manual_seed(3)
    return tensors_of(pygen.generate(model, **inputs, pad_token_id=0, **settings))


def assert_equal(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(ours) == len(wanted)
    for tensor, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_far_away(mode: str) -> None:
    """Memory for 10^9 tokens would be terabytes with beams; these texts end after a few."""
    ends = [token_id for token_id in range(VOCAB_SIZE) if token_id % 4]
    settings = {**MODES[mode], "eos_token_id": ends}
    if mode == "beams that never stop early":
        settings["length_penalty"] = 0.0
    model = hf_model("qwen2")
    assert_equal(run(model, max_new_tokens=10**9, **settings), run(model, max_new_tokens=40, **settings))


@pytest.mark.parametrize("mode", MODES)
def test_growing_changes_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_model("qwen2")
    wanted = run(model, max_new_tokens=11, eos_token_id=50, **MODES[mode])
    monkeypatch.setattr(growth, "FIRST_CAPACITY", 1)
    assert_equal(run(model, max_new_tokens=11, eos_token_id=50, **MODES[mode]), wanted)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("model", [cached_model(), encoder_decoder("bart")], ids=["module", "encoder-decoder"])
def test_growing_with_other_models(model: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_new_tokens": 9, "use_cache": mode == "greedy", **MODES[mode]}
    wanted = run(model, **settings)
    monkeypatch.setattr(growth, "FIRST_CAPACITY", 2)
    assert_equal(run(model, **settings), wanted)


def test_a_streamer_gets_what_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "FIRST_CAPACITY", 1)
    streamer = Collected()
    (tokens,) = run(hf_model("qwen2"), max_new_tokens=7, streamer=streamer)
    assert torch.equal(torch.stack(streamer.tokens[1:], dim=1), tokens[:, PROMPTS.shape[1] :])


def test_a_graph_needs_all_of_its_cache_at_once() -> None:
    """A call with a huge limit cannot get it: it runs eagerly, and says why."""
    from pygen.graph.eligibility import MAX_POSITIONS, _reason_of_length
    from tests.generate.plans import make_call

    for limit, fits in ((MAX_POSITIONS - 3, True), (MAX_POSITIONS - 2, False)):
        reason = _reason_of_length(make_call(PROMPTS, model=hf_model("qwen2"), max_new_tokens=limit))
        assert (reason is None) == fits, reason
