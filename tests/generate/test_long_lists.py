"""Long lists of ids act as the processors do, in a time that does not grow quadratically."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen import processors
from pygen.generate import generate
from tests.helpers.generation import generate_output, generate_tokens

VOCAB_SIZE = 5003  # so that the last word of a bitmask is partly used
IDS = torch.tensor([[3], [7]])


class Scores(nn.Module):
    """Scores that depend on the last id alone, not on the position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(11, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids % 11]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens"])
def test_many_suppressed_ids(name: str, settings: dict[str, Any]) -> None:
    best = Scores().table.topk(2000).indices.flatten().tolist()
    banned = [-1, VOCAB_SIZE, *best, VOCAB_SIZE - 1]
    given: list[Any] = [processors.SuppressTokensLogitsProcessor(banned)]
    if name == "begin_suppress_tokens":
        given = [processors.SuppressTokensAtBeginLogitsProcessor(banned, 1)]
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, **settings}
    setting: dict[str, Any] = {name: banned}
    ours = generate_output(Scores(), IDS, **settings, **setting)
    called = generate_output(Scores(), IDS, **settings, logits_processor=[lambda ids, scores: given[0](ids, scores)])
    assert torch.equal(ours.sequences, called.sequences)
    for step, other in zip(ours.scores, called.scores, strict=True):
        assert torch.equal(step, other)
    assert int((ours.scores[0][0] == -torch.inf).sum()) == len({i for i in banned if 0 <= i < VOCAB_SIZE})


def test_long_lists_take_little_time() -> None:
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(11, VOCAB_SIZE) for _ in range(count)]

    words = [ids(draw.randint(2, 4)) for _ in range(20_000)]
    for settings in (
        {"suppress_tokens": ids(100_000)},
        {"eos_token_id": ids(20_000), "min_new_tokens": 3},
        {"bad_words_ids": [*words, ids(20_000)]},
        {"sequence_bias": {tuple(word): 1.0 for word in words}},
    ):
        start = time.process_time()
        generate(Scores(), IDS, max_new_tokens=3, pad_token_id=0, **settings)
        assert time.process_time() - start < 2.0, next(iter(settings))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "prompt_lookup_num_tokens": 3}])
def test_a_call_can_be_interrupted(settings: dict[str, Any]) -> None:
    """Ctrl-C ends a call after the current step, however many tokens remain."""
    words = [[3, 4, number] for number in range(2000)]
    # A process in the background of a shell ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            generate(Scores(), IDS, max_new_tokens=10**7, pad_token_id=0, bad_words_ids=words, **settings)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 20
    assert generate_tokens(Scores(), IDS, max_new_tokens=2, pad_token_id=0).shape == (2, 3)
