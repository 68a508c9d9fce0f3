"""The state of a captured draw: how a call fills it, and how it copies the results."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.graph.static_sample import StaticSample, form_of
from pygen.ops import DecodeState, prepare_sample

VOCAB_SIZE, STEPS = 20, 4


def scores_of(tokens: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB_SIZE) * 9.0


def state_of(length: int, eos: list[int]) -> DecodeState:
    prompt = torch.arange(1, 2 * length + 1).view(2, length)
    return DecodeState.create(prompt, STEPS, eos_token_ids=eos, pad_token_id=-1)


def test_calls_one_after_the_other() -> None:
    state = state_of(5, [7, 8])
    draw = prepare_sample(scores_of([0, 0]), do_sample=False, state=state)
    assert draw.noise is not None
    form = form_of([draw], state, num_logprobs=0, on_invalid="raise")
    # The model never reads a pad token outside the vocabulary.
    assert (form.num_eos, form.pad_token_id) == (8, 0)
    static = StaticSample(scores_of([0, 0]), form, capacity=6)
    for length, eos in ((5, [7, 8]), (2, [9])):
        state = state_of(length, eos)
        static.begin(state, draw.noise)
        own = static.state
        assert own.eos_token_ids is not None and own.eos_token_ids.tolist() == eos + [-1] * (8 - len(eos))
        assert own.token_ids[:, 6 - length : 6].equal(state.tokens(0))
        assert own.history[:, :6].tolist() == [[-1] * (6 - length) + row for row in state.tokens(0).tolist()]
        messages: list[Tensor] = []
        for tokens in ([1, 2], [eos[0], 3], [4, eos[-1]]):
            static(scores_of(tokens))
            messages.append(static.message.words.clone())
        # Nothing of the third step remains.
        static.finish(state, 2, static.message.read(messages[1]))
        assert state.tokens(2)[:, length:].tolist() == [[1, eos[0]], [2, 3]]
        assert state.num_generated.tolist() == [2, 2]
        assert state.finished.tolist() == [True, False] and state.unfinished.tolist() == [1]
