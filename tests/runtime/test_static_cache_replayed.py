"""Steps over the static cache that replay without the host."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers.modeling_outputs import BaseModelOutput

from pygen import use_backend
from tests.runtime.readers import (
    ATTENTIONS,
    CAPACITY,
    DECODERS,
    PAIRS,
    PROMPTS,
    VISIBLE,
    Reader,
    Readers,
)
from tests.runtime.tape import Tape, no_host_reads

pytestmark = pytest.mark.usefixtures("small_models")


class Step:
    """A step over static buffers: it reads a token and replaces it with the next."""

    def __init__(self, reader: Reader, token: Tensor) -> None:
        rows, length = reader.visible.shape
        self.reader, self.token = reader, token.clone()
        self.visible = torch.cat([reader.visible, torch.ones(rows, CAPACITY - length, dtype=torch.int64)], dim=1)
        self.positions = reader.visible.sum(1, keepdim=True)
        self.inputs: dict[str, Any] = {"past_key_values": reader.cache, "use_cache": True}
        if reader.source is None:
            self.inputs |= {"input_ids": self.token, "attention_mask": self.visible, "position_ids": self.positions}
        else:
            encoded = BaseModelOutput(last_hidden_state=cast(Any, reader.source))
            self.inputs |= {"decoder_input_ids": self.token, "decoder_attention_mask": self.visible}
            self.inputs |= {"encoder_outputs": encoded}

    def __call__(self) -> None:
        logits = self.reader.model(**self.inputs).logits[:, -1]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.positions.add_(1)


@pytest.mark.parametrize("replayed", [False, True], ids=["called", "replayed"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_a_replayed_step_advances_by_itself(family: str, attention: str, replayed: bool) -> None:
    """The replay needs no value on the host and none of the first step's Python."""
    readers = Readers(family, attention)
    token = readers.read(PROMPTS, VISIBLE)
    ours, theirs = readers.both
    step, tape = Step(ours, token), Tape()
    start, steps = readers.length, CAPACITY - readers.length
    for index in range(steps):
        token = theirs.read(token).argmax(-1)[:, None]
        if not replayed:
            with no_host_reads():
                step()
        elif index == 0:
            with tape:
                step()
        else:
            tape.replay()
        assert step.token.equal(token), index
        assert int(readers.static.device_length) == start + index + 1
    if replayed:
        readers.static.set_length(CAPACITY)
    assert readers.static.length == CAPACITY


def test_beams_in_a_replayed_step() -> None:
    """The step includes the reordering, and the device counts the rows' positions."""
    readers = Readers("llama", rows=6)
    ours, theirs = readers.both
    readers.read(PROMPTS, VISIBLE)
    for reader in readers.both:
        reader.expand(2)
    readers.static.share_prefix()
    token = torch.arange(1, 7)[:, None]
    step, tape = Step(ours, token), Tape()
    sources, shared = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    for index in range(6):
        swapped = torch.tensor([1, 0, 3, 2, 4, 4]) if index % 2 else torch.arange(6)
        sources.copy_(swapped)
        if index == 0:
            with tape, use_backend("torch"):
                step()
                readers.static.reorder_suffix(sources, shared, None)
                step.token.copy_(step.token[sources])
        else:
            tape.replay()
        token = theirs.read(token).argmax(-1)[:, None][swapped]
        theirs.cache.reorder_cache(swapped)
        assert step.token.equal(token), index


def test_a_compiled_forward_is_compiled_for_all_steps() -> None:
    """torch compiles a second time when the host's length changes, and then never again."""
    readers = Readers("gemma2 mixed")
    ours, theirs = readers.both
    step = Step(ours, readers.read(PROMPTS, VISIBLE))
    counter, tokens = CompileCounter(), [step.token.clone()]
    forward: Any = torch.compile(readers.model.forward, backend=counter, fullgraph=True)
    for index in range(6):
        logits = forward(**step.inputs).logits[:, -1]
        torch.testing.assert_close(logits, theirs.read(tokens[-1]), rtol=1e-4, atol=1e-4)
        tokens.append(logits.argmax(-1, keepdim=True))
        step.token.copy_(tokens[-1])
        step.positions.add_(1)
        assert readers.static.length == int(readers.static.device_length) == 8 + index
    assert counter.frame_count <= 2


def test_the_host_is_put_right() -> None:
    readers = Readers("llama")
    token = readers.read(PROMPTS, VISIBLE)
    cache = readers.static
    with no_host_reads():
        cache.set_length(10)
        assert cache.length == 10 and cache.device_length is cache.get_seq_length()
        cache.set_length(7)
        assert cache.length == 7
    readers.go_on(token, 2)
    with pytest.raises(ValueError, match=r"`length` must be in \[0, 24\], got 25"):
        cache.set_length(25)
