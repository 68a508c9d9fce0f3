"""The rule for models whose logits depend on the cache detects planted faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pygen.models.transformers import TransformersAdapter
from tests.shadow import readings
from tests.shadow.architectures import tiny_model
from tests.shadow.compare import EVERYTHING, by_pygen, differences
from tests.shadow.test_shadow import SETTINGS, assert_read_as_drafts, assert_read_by_token

# The end repeats the beginning, so that the lookup finds drafts, and some of them are right.
IDS = torch.tensor([[4, 9, 31, 7, 22, 4, 9, 31, 7, 22, 4, 9]])
PADDED = torch.tensor([[0, 0, 0, 22, 35, 9], [5, 11, 4, 3, 8, 12]])
LOOKUP: dict[str, Any] = {**SETTINGS, **EVERYTHING, "prompt_lookup_num_tokens": 3, "max_new_tokens": 12}
BEAMS: dict[str, Any] = {
    **SETTINGS,
    "num_beams": 4,
    "num_return_sequences": 4,
    "attention_mask": (PADDED != 0).long(),
    "output_scores": True,
    "return_dict_in_generate": True,
}


@pytest.fixture
def alike() -> Any:
    return tiny_model("LlamaForCausalLM")


@pytest.fixture
def otherwise(alike: Any) -> Iterator[Any]:
    """Yields a model that shifts the positions of tokens after a cache, further if it reads more of them at once."""

    def shift(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        moved = 0 if cache is None or cache.get_seq_length() == 0 else 2 * kwargs["input_ids"].shape[1]
        return args, kwargs | {"position_ids": kwargs["position_ids"] + moved}

    hook = alike.register_forward_pre_hook(shift, with_kwargs=True)
    yield alike
    hook.remove()


def test_the_measurement(alike: Any) -> None:
    assert readings.Reader(alike).reads_alike(IDS, 5)
    assert readings.Reader(alike, (PADDED != 0).long()[:, :4]).reads_alike(PADDED, 4)


def test_a_model_that_reads_otherwise_and_no_fault(otherwise: Any) -> None:
    assert not readings.Reader(otherwise).reads_alike(IDS, 5)
    drafted, plain = by_pygen(otherwise, IDS, **LOOKUP), by_pygen(otherwise, IDS, **LOOKUP, use_cache=True)
    assert_read_as_drafts(drafted, otherwise, (IDS,), LOOKUP, differences(drafted, plain))
    assert_read_by_token(by_pygen(otherwise, PADDED, **BEAMS), otherwise, (PADDED,), BEAMS)


def _keeps_rejected(crop: Callable[..., bool], self: Any, num_tokens: int) -> bool:
    return True


def _takes_one_more(crop: Callable[..., bool], self: Any, num_tokens: int) -> bool:
    return crop(self, num_tokens + (num_tokens > 0))


def _blind(decode: Callable[..., Any], self: Any, token_ids: Any, unread: int, count: int) -> Any:
    self._growing._buffers[0][1][:, 2] = 0
    return decode(self, token_ids, unread, count)


def _second_best(decode: Callable[..., Any], self: Any, token_ids: Any, unread: int, count: int) -> Any:
    logits = decode(self, token_ids, unread, count).clone()
    return logits.scatter_(-1, logits.argmax(-1, keepdim=True), -9.0)


@pytest.mark.parametrize(
    ("method", "fault"),
    [("crop", _keeps_rejected), ("crop", _takes_one_more), ("_decode", _blind), ("_decode", _second_best)],
)
def test_drafts_with_a_fault(otherwise: Any, monkeypatch: pytest.MonkeyPatch, method: str, fault: Any) -> None:
    right = getattr(TransformersAdapter, method)
    monkeypatch.setattr(TransformersAdapter, method, lambda *args: fault(right, *args))
    ours = by_pygen(otherwise, IDS, **LOOKUP)
    with pytest.raises((AssertionError, KeyError)):
        assert_read_as_drafts(ours, otherwise, (IDS,), LOOKUP, ["a difference"])


def test_beams_with_a_fault(otherwise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersAdapter, "reorder", lambda *args: None)
    with pytest.raises(AssertionError):
        assert_read_by_token(by_pygen(otherwise, PADDED, **BEAMS), otherwise, (PADDED,), BEAMS)


def test_a_difference_on_a_model_that_reads_alike_is_a_fault(alike: Any) -> None:
    drafted, beams = by_pygen(alike, IDS, **LOOKUP), by_pygen(alike, PADDED, **BEAMS)
    with pytest.raises(AssertionError, match="a difference"):
        assert_read_as_drafts(drafted, alike, (IDS,), LOOKUP, ["a difference"])
    with pytest.raises(AssertionError):
        assert_read_by_token(beams, alike, (PADDED,), BEAMS)
