"""Each architecture in both libraries: the same call, from the same seed, and everything that comes back is the same.

A mode and a way of handing over the inputs are paired anew for each architecture, so that all pairs occur.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers

from pygen.backends import BackendError
from tests.shadow.architectures import ARCHITECTURES, texts, tiny_model
from tests.shadow.compare import EVERYTHING, by_pygen, by_transformers, differences

SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "max_new_tokens": 6,
    "pad_token_id": 63,
    "eos_token_id": [20, 33, 50],
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": EVERYTHING,
    "beams": {"num_beams": 3, "num_return_sequences": 2, **EVERYTHING},
    "plain": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.8, **EVERYTHING},
    "copies": {"do_sample": True, "num_return_sequences": 3, **EVERYTHING},
    "beam sampling": {"do_sample": True, "num_beams": 2, **EVERYTHING},
    "lookup": {"prompt_lookup_num_tokens": 3, **EVERYTHING},
    "assistant": {**EVERYTHING},
    "static": {"cache_implementation": "static", **EVERYTHING},
    "no cache": {"use_cache": False, "num_beams": 2, **EVERYTHING},
}
DRAFTED = ("lookup", "assistant")
_EVERY, _SOME = ("greedy", "beams"), tuple(name for name in MODES if name not in ("greedy", "beams"))
REFUSALS = (ValueError, TypeError, NotImplementedError, BackendError)


def cases() -> list[Any]:
    result = []
    for i, architecture in enumerate(ARCHITECTURES):
        modes = (
            list(MODES)
            if ARCHITECTURES[architecture].all_modes
            else [*_EVERY, *(_SOME[(i + 3 * k) % len(_SOME)] for k in range(3))]
        )
        result += [pytest.param(architecture, mode, i + k, id=f"{architecture}-{mode}") for k, mode in enumerate(modes)]
    return result


def call(name: str, mode: str, number: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(model, positional arguments, keywords) of a case."""
    model, row = tiny_model(name), ARCHITECTURES[name]
    inputs = row.inputs(model.config, 4 if mode == "copies" else 1 if mode in DRAFTED else 2)
    settings = {**SETTINGS, **MODES[mode]}
    if mode == "assistant":
        settings["assistant_model"] = tiny_model(name, 1)
    if not row.has_attentions:
        settings.pop("output_attentions", None)
    ways = _ways(model, inputs, mode)
    args, kwargs = ways[number % len(ways)]
    return model, args, {**kwargs, **settings}


def _ways(model: Any, inputs: dict[str, Any], mode: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The same inputs by name, by position, padded on the left, as embeddings, and with a beginning for the decoder."""
    main = model.main_input_name if model.main_input_name in inputs else next(iter(inputs))
    rest = {name: value for name, value in inputs.items() if name != main}
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), inputs), ((inputs[main],), rest)]
    if model.config.is_encoder_decoder:
        begun = torch.tensor([[1, 5], [1, 6], [1, 7], [1, 8]])[: len(inputs[main])]
        ways.append(((), {**inputs, "decoder_input_ids": begun}))
    if main != "input_ids" or rest:
        return ways
    ids, names = inputs[main], inspect.signature(model.forward).parameters
    if "attention_mask" in names:
        padded = ids.clone()
        padded[0, :3] = 0
        ways.append(((padded,), {"attention_mask": (padded != 0).long()}))
    embeds = (
        model.config.is_encoder_decoder
        or "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters
    )
    if "inputs_embeds" in names and embeds and mode not in (*DRAFTED, "no cache"):
        with torch.no_grad():
            ways.append(((), {"inputs_embeds": model.get_input_embeddings()(ids)}))
    return ways


@pytest.mark.parametrize(("name", "mode", "number"), cases())
def test_shadow(name: str, mode: str, number: int) -> None:
    row = ARCHITECTURES[name]
    model, args, kwargs = call(name, mode, number)
    theirs = by_transformers(model, *args, **kwargs)
    ours = by_pygen(model, *args, **kwargs)
    if isinstance(theirs, Exception) and isinstance(ours, Exception):
        # What pygen says by itself, or the model's own error.
        assert isinstance(ours, REFUSALS) or type(ours) is type(theirs), ours
    elif isinstance(ours, Exception):
        assert mode in row.refused, ours
        assert isinstance(ours, REFUSALS) and row.refused[mode] in str(ours)
    elif isinstance(theirs, Exception):
        assert_right(ours, model, mode, args, kwargs)
    else:
        ignored: tuple[str, ...] = ()
        if mode in DRAFTED:
            # transformers cuts those of the first round at other places for some families.
            ignored = ("attentions", "hidden_states")
        elif "num_beams" in MODES[mode]:
            # pygen gives back the cache of the returned sequences, transformers that of the last beams.
            ignored = ("past_key_values", "cache")
        found = differences(ours, theirs, ignored)
        own = mode in row.own or (mode in row.own_lately and transformers.__version__ != "5.6.1")
        if found and not own and mode in DRAFTED:
            assert_drafts_of_two_texts(ours, model, mode, args, kwargs, found)
        elif found:
            assert own, found
            assert_right(ours, model, mode, args, kwargs)
        else:
            assert mode not in row.own or transformers.__version__ != "5.6.1", "no difference is left"


def without_drafts(kwargs: dict[str, Any]) -> dict[str, Any]:
    drafts = ("prompt_lookup_num_tokens", "assistant_model", "cache_implementation")
    return {name: value for name, value in kwargs.items() if name not in drafts}


def assert_drafts_of_two_texts(
    ours: Any, model: Any, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[str]
) -> None:
    """Some models read one token with a cache otherwise than a text at once: what drafts read is one of the two."""
    plain = without_drafts(kwargs)
    cached, whole = by_pygen(model, *args, **plain), by_pygen(model, *args, **plain, use_cache=False)
    shared = zip(cached.logits, whole.logits, strict=False)
    assert max(float((one - other).abs().max()) for one, other in shared) > 0.1, found
    assert any(ours.sequences.equal(text.sequences) for text in (cached, whole)), found


def assert_right(ours: Any, model: Any, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The text of a call without drafts, or else without a cache, which embeddings always get."""
    kwargs = without_drafts(kwargs)
    if "inputs_embeds" in kwargs and not model.config.is_encoder_decoder:
        kwargs["input_ids"] = texts(model.config, len(kwargs.pop("inputs_embeds")))["input_ids"]
    expected = by_pygen(model, *args, **kwargs | ({} if mode in DRAFTED else {"use_cache": False}))
    ours, expected = getattr(ours, "sequences", ours), getattr(expected, "sequences", expected)
    assert torch.equal(ours, expected[:, -ours.shape[1] :])
