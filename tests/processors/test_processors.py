"""Every processor except filters, against transformers' class: lengths, vocabularies, dtypes and edge rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from pygen import processors
from tests.helpers.releases import since
from tests.processors.cases import DTYPES, PROMPT_LENGTH, VOCAB_SIZES, assert_same, ids_of, others, rows_of

COUNT = len(others(7))


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("number", range(COUNT), ids=lambda n: f"{n}-{others(7)[n].name}")
def test_processors_as_transformers(number: int, vocab_size: int) -> None:
    name, arguments = others(vocab_size)[number]
    ours = getattr(processors, name)(**arguments)
    theirs = getattr(transformers.generation.logits_process, name)(**_accepted_by_transformers(arguments))
    for length in (1, PROMPT_LENGTH, 30):
        input_ids = ids_of(vocab_size, length)
        for dtype in DTYPES:
            for label, scores in rows_of(vocab_size, dtype):
                before = scores.clone()
                actual = ours(input_ids, scores)
                assert_same(scores, before, "the input was modified")
                expected = theirs(input_ids, scores)
                if name == "ExponentialDecayLengthPenalty":  # transformers makes NaN of infinite scores
                    expected = expected.where(scores.isfinite(), scores)
                if name == "PrefixConstrainedLogitsProcessor" and since("5.18"):  # it forces what is banned otherwise
                    expected = expected.where((actual > -torch.inf).any(-1, keepdim=True), actual)
                assert_same(actual, expected, f"{label}, length {length}, {dtype}")


def _accepted_by_transformers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replaces the list form of biases, which refuses token 0 in transformers."""
    bias = arguments.get("sequence_bias")
    return {"sequence_bias": {tuple(ids): b for ids, b in bias}} if isinstance(bias, list) else arguments


class OpCounter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["SequenceBias", "NoBadWords", "NoRepeatNGram", "EncoderNoRepeatNGram"])
def test_a_step_costs_no_loop_over_sequences_or_rows(name: str) -> None:
    def ops_of_a_step(size: int) -> int:
        sequences = [[a, b, 3] for a in range(1, 3) for b in range(1, 1 + size)]
        arguments: dict[str, tuple[Any, ...]] = {
            "SequenceBias": ([[ids, 1.0] for ids in sequences],),
            "NoBadWords": (sequences,),
            "NoRepeatNGram": (3,),
            "EncoderNoRepeatNGram": (3, torch.arange(9 * size).reshape(size, 9)),
        }
        processor = getattr(processors, f"{name}LogitsProcessor")(*arguments[name])
        input_ids, scores = torch.ones(size, 6, dtype=torch.int64), torch.randn(size, 50)
        processor(input_ids, scores)
        counter = OpCounter()
        with counter:
            processor(input_ids, scores)
        return counter.count

    assert ops_of_a_step(2) == ops_of_a_step(40)
