"""Runs the same call with `pygen.generate` and with transformers' `generate`, and compares the results."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from pygen.generate import generate
from pygen.models.versions import CACHE_NAMES

EVERYTHING: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


def both(model: Any, *args: Any, seed: int = 0, **kwargs: Any) -> tuple[Any, Any]:
    """Returns (pygen's result, transformers' result) under one seed."""
    torch.manual_seed(seed)
    ours = generate(model, *args, **kwargs)
    torch.manual_seed(seed)
    return ours, GenerationMixin.generate(model, *args, **kwargs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Asserts equal tokens, and equal shapes and close values in every field."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs)
        return
    assert torch.equal(ours.sequences, theirs.sequences)
    assert set(theirs) <= set(ours)
    for name in set(theirs) - {"sequences", *CACHE_NAMES}:
        ours_flat, theirs_flat = list(_tensors(ours[name])), list(_tensors(theirs[name]))
        assert len(ours_flat) == len(theirs_flat), name
        for x, y in zip(ours_flat, theirs_flat, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=functools.partial("{}: {}".format, name))
    if theirs.past_key_values is not None:
        assert type(ours.past_key_values) is type(theirs.past_key_values)
        if hasattr(theirs.past_key_values, "layers") and hasattr(theirs.past_key_values.layers[0], "get_seq_length"):
            assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()


def assert_both_same(model: Any, *args: Any, seed: int = 0, **kwargs: Any) -> Any:
    ours, theirs = both(model, *args, seed=seed, **kwargs)
    assert_same(ours, theirs)
    return ours


def _tensors(value: Any) -> Any:
    """Yields the tensors of nested tuples, and a marker at every end, so that a comparison covers the nesting."""
    if isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
        yield torch.tensor(-1)
    else:
        yield value
