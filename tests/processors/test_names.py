"""Names, signatures, attributes and constructor errors equal transformers'."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from pygen import processors
from tests.helpers.releases import since
from tests.processors.cases import Other, Warper, others, warpers

# Processors of one model only, and the watermark's state, which isn't a processor.
MODEL_BOUND = ("Bark", "Dia", "Whisper", "SynthIDTextWatermarkState")
# Buffers of transformers' own methods, and of its continuous batching.
INNER = {
    "logits_indices",
    "cu_seq_lens_q",
    "generated_ngrams",
    "length_1_bias",
    "multi_token_biases",
    "prepared_bias_variables",
}

NAMES = [
    name
    for name, value in vars(hf).items()
    if inspect.isclass(value) and value.__module__ == hf.__name__ and not name.startswith(MODEL_BOUND)
]
CASES: list[Warper | Other] = [*warpers()[::4], *others(7)]
CONSTRUCTIONS = [(case.name, case.arguments) for case in CASES]


# Processors that transformers does not have.
OWN = ("ThinkingBudgetLogitsProcessor", "TopNSigmaLogitsWarper")


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name: str) -> None:
    ours, theirs = getattr(processors, name), getattr(hf, name)
    assert parameters(ours) == parameters(theirs)
    assert parameters(ours.__call__) == parameters(theirs.__call__)
    assert issubclass(ours, list if name == "LogitsProcessorList" else processors.LogitsProcessor)
    if name != "LogitsProcessorList":
        assert ours.supports_continuous_batching is theirs.supports_continuous_batching
    public = {attribute for attribute in vars(theirs) if not attribute.startswith("_")}
    assert public <= set(dir(ours))


def test_all_names_are_exported() -> None:
    assert {*NAMES, *OWN} == set(processors.__all__)


@pytest.mark.parametrize("number", range(len(CONSTRUCTIONS)), ids=lambda n: f"{n}-{CONSTRUCTIONS[n][0]}")
def test_attributes(number: int) -> None:
    name, arguments = CONSTRUCTIONS[number]
    ours, theirs = getattr(processors, name)(**arguments), getattr(hf, name)(**arguments)
    for attribute in vars(theirs).keys() - INNER:
        actual, expected = getattr(ours, attribute), getattr(theirs, attribute)
        assert torch.equal(actual, expected.reshape(actual.shape)) if torch.is_tensor(expected) else actual == expected


# Arguments that both refuse, with the same type of error.
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("TemperatureLogitsWarper", {"temperature": t}) for t in (0.0, -1.0, float("nan"), 0, -2, "1", None)),
    *(("TopKLogitsWarper", {"top_k": k}) for k in (0, -1, 2.0, "3", None)),
    *(("TopPLogitsWarper", {"top_p": p}) for p in (-0.1, 1.2, None)),
    ("TopPLogitsWarper", {"top_p": []}),
    *(("MinPLogitsWarper", {"min_p": p}) for p in (-0.1, 1.2, float("nan"), None, "x")),
    *(("TopHLogitsWarper", {"top_h": p}) for p in (0, -0.1, 1.2, float("nan"), None, "x")),
    *(("TypicalLogitsWarper", {"mass": p}) for p in (0, 1, 1.0, -0.1, 1.2, float("nan"), None)),
    *(("EpsilonLogitsWarper", {"epsilon": p}) for p in (0, 1, 1.0, -0.1, 1.2, None)),
    *(("EtaLogitsWarper", {"epsilon": p}) for p in (0, 1, 1.0, -0.1, 1.2, None)),
    *(("TopPLogitsWarper", {"top_p": 0.5, "min_tokens_to_keep": n}) for n in (0, -1, 1.5, "1")),
    *(("MinPLogitsWarper", {"min_p": 0.5, "min_tokens_to_keep": n}) for n in (0, -1, 1.5, "1")),
    *(("EpsilonLogitsWarper", {"epsilon": 0.5, "min_tokens_to_keep": n}) for n in (0, -1)),
    *(("RepetitionPenaltyLogitsProcessor", {"penalty": p}) for p in (0.0, -1.0, float("nan"), "1", None)),
    *(("RepetitionPenaltyLogitsProcessor", {"penalty": 1.5, "prompt_ignore_length": n}) for n in (-1, 1.5, "1")),
    *(
        ("EncoderRepetitionPenaltyLogitsProcessor", {"penalty": p, "encoder_input_ids": None})
        for p in (0.0, -1.0, "1", None)
    ),
    *(("NoRepeatNGramLogitsProcessor", {"ngram_size": n}) for n in (0, -1, 1.5, "2", None)),
    *(
        ("EncoderNoRepeatNGramLogitsProcessor", {"encoder_ngram_size": n, "encoder_input_ids": torch.ones(1, 1)})
        for n in (0, -1, 1.5, None)
    ),
    *(("MinLengthLogitsProcessor", {"min_length": n, "eos_token_id": 1}) for n in (-1, 1.5, "2", None)),
    *(
        ("MinNewTokensLengthLogitsProcessor", {"prompt_length_to_skip": a, "min_new_tokens": b, "eos_token_id": 1})
        for a, b in ((-1, 1), (1, -1), (1.5, 1), (1, None))
    ),
    *(("ForcedEOSTokenLogitsProcessor", {"max_length": 5, "eos_token_id": e}) for e in (-1, [1, -2], 1.5, [0.5])),
    *(
        (
            "ExponentialDecayLengthPenalty",
            {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": e, "input_ids_seq_length": 2},
        )
        for e in (-1, [1, -2], 1.5)
    ),
    *(
        ("SequenceBiasLogitsProcessor", {"sequence_bias": bias})
        for bias in (
            {},
            [],
            None,
            "x",
            {1: 2.0},
            {(): 1.0},
            {(-1,): 1.0},
            {(1.5,): 1.0},
            {(1,): "x"},
            {(1,): None},
            [[[-1], 1.0]],
            [[(1,), 1.0]],
            [[[1], None]],
        )
    ),
    *(("NoBadWordsLogitsProcessor", {"bad_words_ids": words}) for words in ([], None, "x", [1], [[1.5]])),
    *(("ClassifierFreeGuidanceLogitsProcessor", {"guidance_scale": s}) for s in (1, 1.0, 0.5, -3)),
    *(
        (
            "AlternatingCodebooksLogitsProcessor",
            {"input_start_len": n, "semantic_vocab_size": 3, "codebook_size": 3},
        )
        for n in (-1, 1.5, None)
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda n: f"{n}-{REFUSED[n][0]}")
def test_refused_arguments(number: int) -> None:
    name, arguments = REFUSED[number]
    refused: type[Exception] = ValueError
    try:
        getattr(hf, name)(**arguments)
    except Exception as error:
        refused = type(error)
    else:
        assert since("5.7")
    with pytest.raises(refused, match=r"^`\w+` must (be|hold) .*, got "):
        getattr(processors, name)(**arguments)


# Arguments that transformers accepts and pygen refuses.
STRICTER: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("TopPLogitsWarper", {"top_p": float("nan")}, ValueError, "`top_p` must be a number in [0, 1], got nan"),
    ("TopPLogitsWarper", {"top_p": "0.9"}, TypeError, "`top_p` must be a number in [0, 1], got '0.9'"),
    ("TopPLogitsWarper", {"top_p": True}, ValueError, "`top_p` must be a number in [0, 1], got True"),
    ("EpsilonLogitsWarper", {"epsilon": float("nan")}, ValueError, "`epsilon` must be a number in (0, 1), got nan"),
    (
        "TemperatureLogitsWarper",
        {"temperature": float("inf")},
        ValueError,
        "`temperature` must be a finite number > 0, got inf",
    ),
    ("TopKLogitsWarper", {"top_k": True}, ValueError, "`top_k` must be a 64-bit integer >= 1, got True"),
    (
        "NoBadWordsLogitsProcessor",
        {"bad_words_ids": [[]]},
        ValueError,
        "`bad_words_ids` must be a non-empty list of non-empty lists of ids >= 0, got [[]]",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), STRICTER)
def test_wrong_arguments_that_transformers_takes(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    getattr(hf, name)(**arguments)
    with pytest.raises(error) as refused:
        getattr(processors, name)(**arguments)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("TemperatureLogitsWarper", {"temperature": 2}),
        ("TemperatureLogitsWarper", {"temperature": np.float32(0.5)}),
        ("RepetitionPenaltyLogitsProcessor", {"penalty": 2}),
        ("TopKLogitsWarper", {"top_k": np.int64(3)}),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": {(1,): 2}}),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": [[[0], 2.0]]}),
    ],
)
def test_right_arguments_that_transformers_refuses(name: str, arguments: dict[str, Any]) -> None:
    if name != "SequenceBiasLogitsProcessor" or not since("5.18"):
        with pytest.raises(ValueError):
            getattr(hf, name)(**arguments)
    getattr(processors, name)(**arguments)


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(NotImplementedError, match="LogitsProcessor must define `__call__`"):
        processors.LogitsProcessor()(torch.ones(1, 1), torch.ones(1, 1))
