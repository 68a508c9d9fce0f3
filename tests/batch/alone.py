"""What `generate` gives for one prompt alone, and whether a batch gave the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pygen import rng
from pygen.batch.results import BatchResult
from pygen.knobs import SETTINGS
from tests.helpers.generation import generate_output

_PER_ROW = {"do_sample", *(knob.name for knob in SETTINGS)}


def run_alone(model: Any, prompt: dict[str, Any], *, tokenizer: Any = None, seed: Any = None) -> Any:
    """The output of `generate` for `prompt`, or the error that it raised. seed: of a prompt that names none."""
    settings = dict(prompt)
    ids = settings.pop("input_ids", None)
    if ids is None:
        ids = tokenizer(settings.pop("prompt"))["input_ids"]
    if seed is not None:
        settings["seed"] = seed
    try:
        return generate_output(
            model,
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            **settings,
            tokenizer=tokenizer,
            return_dict_in_generate=True,
        )
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return error


def differences(model: Any, prompt: dict[str, Any], results: Sequence[BatchResult], **alone: Any) -> list[str]:
    """In what the results of one prompt differ from those of `generate` for it alone."""
    first = results[0]
    expected = run_alone(model, prompt, seed=prompt.get("seed", first.seed), **alone)
    if isinstance(expected, RuntimeError) and len(results) > 1:
        # One of its sequences failed, which ends the others only where they share a call.
        return [what for result in results for what in differences(model, _of_copy(prompt, result), [result], **alone)]
    if isinstance(expected, Exception):
        if type(first.error) is type(expected) and str(first.error) == str(expected):
            return []
        return [f"alone: {expected!r}, in the batch: {first.error!r} {first.token_ids}"]
    found = []
    if len(results) != len(expected.sequences):
        return [f"expected {len(expected.sequences)} sequences, got {len(results)}"]
    for result in results:
        found += _row_differences(result, expected)
    return found


def _of_copy(prompt: dict[str, Any], result: BatchResult) -> dict[str, Any]:
    """The prompt that gives one of the returned sequences alone."""
    values = prompt.items()
    own = {
        name: [value[result.copy]] if name in _PER_ROW and isinstance(value, list) else value for name, value in values
    }
    assert isinstance(result.seed, int)
    return {**own, "num_return_sequences": 1, "seed": [rng.row_seed(result.seed, result.copy)]}


def _row_differences(result: BatchResult, expected: Any) -> list[str]:
    at, length = result.copy % len(expected.sequences), len(result.prompt_ids)
    if result.error is not None:
        return [f"sequence {at}: {result.error!r}"]
    count = len(result.token_ids)
    tokens = expected.sequences[at].tolist()
    found = []
    if tokens[:length] != result.prompt_ids or tokens[length : length + count] != result.token_ids:
        found.append(f"sequence {at}: tokens {tokens[length:]} alone, {result.token_ids} in the batch")
    if len({*tokens[length + count :]}) > 1:
        found.append(f"sequence {at}: {tokens[length:]} go on after {count} tokens")
    if expected.finish_reason[at] != result.finish_reason:
        found.append(f"sequence {at}: ends by {expected.finish_reason[at]!r} alone, {result.finish_reason!r}")
    if (expected.logprobs is None) != (result.logprobs is None):
        found.append(f"sequence {at}: log-probabilities {expected.logprobs}, {result.logprobs}")
    elif result.logprobs is not None and not found:
        torch.testing.assert_close(
            torch.tensor(result.logprobs), expected.logprobs[at, :count], rtol=1e-5, atol=1e-5, equal_nan=True
        )
    if (expected.top_logprobs is None) != (result.top_logprobs is None):
        found.append(f"sequence {at}: best log-probabilities {expected.top_logprobs}, {result.top_logprobs}")
    elif result.top_logprobs is not None and not found:
        wanted = expected.top_logprobs
        assert torch.equal(result.top_logprobs.token_ids, wanted.token_ids[at, :count])
        torch.testing.assert_close(
            result.top_logprobs.logprobs, wanted.logprobs[at, :count], rtol=1e-5, atol=1e-5, equal_nan=True
        )
    if (expected.kept is None) != (result.kept is None):
        found.append(f"sequence {at}: kept tokens {expected.kept}, {result.kept}")
    elif result.kept is not None and not found:
        wanted, end = expected.kept.row(at), expected.kept.row(at).offsets[count]
        assert result.kept.token_ids.tolist() == wanted.token_ids[:end].tolist()
        assert result.kept.offsets.tolist() == wanted.offsets[: count + 1].tolist()
        assert result.kept.complete.tolist() == wanted.complete[:count].tolist()
        torch.testing.assert_close(result.kept.log_mass, wanted.log_mass[:count], rtol=1e-5, atol=1e-5)
    return found
