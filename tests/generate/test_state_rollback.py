"""Drafts on models whose caches hold recurrent and convolution states, which pygen saves and restores."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.generate import generate
from pygen.models.cache import num_positions
from pygen.models.cache_snapshot import Snapshot, can_copy
from pygen.models.rollback import Rollback
from tests.helpers.releases import since
from tests.shadow.architectures import ARCHITECTURES
from tests.shadow.tiny import built

NAMES = ("Qwen3NextForCausalLM", "Lfm2ForCausalLM", "FalconH1ForCausalLM", "Mamba2ForCausalLM")
IDS = torch.tensor([[0, 0, 17, 40, 8, 9, 17, 40], [5, 17, 40, 8, 9, 31, 5, 17]])
MASK = (IDS != 0).long()
CALL: dict[str, Any] = {"max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": None}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def model(name: str) -> Any:
    fields = {"layer_types": ["conv", "full_attention"]} if name == "Lfm2ForCausalLM" else ARCHITECTURES[name].fields
    return built(name, 0, **fields)


@functools.cache
def helper(name: str) -> Any:
    """Returns an assistant: a copy of the model with noise in its weights, so that many drafts are right."""
    noisy, generator = copy.deepcopy(model(name)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return noisy


def drafts(name: str, source: str) -> dict[str, Any]:
    return {"prompt_lookup_num_tokens": 3} if source == "lookup" else {"assistant_model": helper(name)}


def forwards(name: str, **call: Any) -> tuple[Any, int]:
    calls: list[None] = []
    handle = model(name).register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        return generate(model(name), **call), len(calls)
    finally:
        handle.remove()


@pytest.mark.parametrize("source", ["lookup", "assistant"])
@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_a_call_without_drafts(name: str, source: str, caplog: pytest.LogCaptureFixture) -> None:
    """Covers one row, padded rows and seeds; a call continues from the returned cache."""
    # transformers 5.6.1 cannot read padded rows with Mamba2's cache.
    inputs = {"inputs": IDS, "attention_mask": MASK} if name != "Mamba2ForCausalLM" else {"inputs": IDS[1:]}
    for call in ({"inputs": IDS[1:]}, inputs, {**inputs, "do_sample": True, "seed": 4}):
        plain: Any = generate(model(name), **call, **CALL)
        output, count = forwards(name, **call, **CALL, **drafts(name, source), return_dict_in_generate=True)
        assert torch.equal(output.sequences, plain)
        assert num_positions(output.cache) in (None, plain.shape[1] - 1)
    if source == "assistant" and since("5.24"):
        assert count < CALL["max_new_tokens"] and not caplog.records
    if not since("5.7"):
        assert count == CALL["max_new_tokens"] and "one at a time" in caplog.text


@pytest.mark.parametrize("name", NAMES[:3])
def test_every_token_has_its_records_and_the_cache_continues(name: str) -> None:
    wanted: dict[str, Any] = {"output_hidden_states": True, "output_logits": True, "return_dict_in_generate": True}
    call = {**CALL, **wanted, "assistant_model": helper(name), "num_assistant_tokens": 4}
    plain: Any = generate(model(name), IDS[1:], **CALL, **wanted)
    drafted: Any = generate(model(name), IDS[1:], **call)
    assert len(drafted.hidden_states) == len(plain.hidden_states)
    for ours, theirs in zip(drafted.hidden_states, plain.hidden_states, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)
    longer = {**CALL, "max_new_tokens": 6}
    ids = drafted.sequences
    expected: Any = generate(model(name), ids, **longer)
    continued: Any = generate(model(name), ids, cache=drafted.cache, prompt_lookup_num_tokens=3, **longer)
    assert torch.equal(continued, expected)


class Sums:
    """A cache that holds the sum of the tokens read, and the sizes of the pieces."""

    def __init__(self) -> None:
        self.total = torch.zeros(1, 1)
        self.pieces: list[int] = []

    def read(self, token_ids: Tensor, unread: int, wanted: int) -> Tensor:
        sums = self.total + token_ids[:, -unread:].cumsum(1)
        self.total = sums[:, -1:]
        self.pieces.append(unread)
        return sums[:, sums.shape[1] - wanted :, None]


@pytest.mark.parametrize("at_once", [True, False])
def test_kept_tokens_of_a_rollback_are_read_again(at_once: bool) -> None:
    cache = Sums()
    rollback = Rollback(cache, cache.read, reads_at_once=at_once)
    text, seen, token = torch.empty(1, 0, dtype=torch.int64), 0, 0
    for accepted in (2, 0, 4, 1, 3, 3, 3, 3, 3, 3, 0):
        rollback.hold()
        tokens = torch.cat([text, torch.arange(token, token + 5)[None]], dim=1)
        sums = rollback.decode(tokens, 5)[0, :, 0]
        assert sums.tolist() == tokens[0].cumsum(0)[-5:].tolist()
        assert rollback.take_back(4 - accepted)
        text, seen, token = tokens[:, : seen + 1 + accepted], seen + 1 + accepted, token + 7
    assert not rollback.take_back(seen + 1)
    rollback.catch_up()
    assert int(cache.total) == int(text.sum()) and rollback.unread == 0
    # A forward reads at most 16 pending tokens together with new ones.
    assert max(cache.pieces) <= (16 + 5 if at_once else 1)


def test_nothing_is_taken_back_that_was_not_held() -> None:
    cache = Sums()
    rollback = Rollback(cache, cache.read, reads_at_once=True)
    rollback.decode(torch.ones(1, 3, dtype=torch.int64), 3)
    assert not rollback.take_back(1) and int(cache.total) == 3


def test_a_cache_of_unknown_parts_is_not_copied() -> None:
    known = SimpleNamespace(a=[torch.ones(2)], b={0: (torch.ones(1), None)}, length=3)
    assert can_copy(known)
    snapshot = Snapshot(known)
    known.a[0].add_(1)
    known.b[0] = (torch.zeros(1), True)
    known.length = 7
    snapshot.restore()
    assert known.a[0].tolist() == [1, 1] and known.b[0][0].tolist() == [1] and known.b[0][1] is None
    assert known.length == 3
    known.buffer = object()
    assert not can_copy(known) and not can_copy(None) and not can_copy((torch.ones(1),))


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("RecurrentGemmaForCausalLM", {"prompt_lookup_num_tokens": 3}, "keeps states in its modules .* without them"),
        ("RwkvForCausalLM", {"prompt_lookup_num_tokens": 3}, "`model`=RwkvForCausalLM .* cannot be taken back"),
        ("FalconH1ForCausalLM", {"assistant_early_exit": 1}, "`assistant_early_exit`=1: FalconH1.* layers alone"),
    ],
)
def test_refusals(name: str, source: dict[str, Any], message: str) -> None:
    before = model(name).config.num_hidden_layers
    with pytest.raises((ValueError, NotImplementedError), match=message):
        generate(model(name), IDS[1:], **CALL, **source)
    assert model(name).config.num_hidden_layers == before
