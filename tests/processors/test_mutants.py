"""Wrong processors, which the comparison with transformers must detect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import processors
from tests.processors.cases import DTYPES, assert_same, check_filter, ids_of, others, rows_of, warpers

# What a filter never looks at.
NO_IDS = torch.zeros(1, 1, dtype=torch.int64)

Wrong = Callable[[dict[str, Any]], Any]


def changed(**changes: Callable[[Any], Any]) -> Wrong:
    """Returns a mutant that changes the given arguments."""
    return lambda arguments: {name: changes.get(name, lambda value: value)(value) for name, value in arguments.items()}


FILTERS: list[tuple[str, str, Callable[[Any, Tensor], Tensor]]] = [
    ("one token more", "TopKLogitsWarper", lambda p, s: _with(p, s, top_k=p.top_k + 1)),
    ("exactly k where scores tie", "TopKLogitsWarper", lambda p, s: _exactly(s, p)),
    ("filter value forgotten", "TopKLogitsWarper", lambda p, s: _with(p, s, filter_value=-torch.inf)),
    ("a little more mass", "TopPLogitsWarper", lambda p, s: _with(p, s, top_p=p.top_p + 1e-2)),
    ("min_tokens_to_keep forgotten", "TopPLogitsWarper", lambda p, s: _with(p, s, min_tokens_to_keep=1)),
    (
        "threshold of the sum, not of the best",
        "MinPLogitsWarper",
        lambda p, s: s.where(s.softmax(-1) >= p.min_p, -torch.inf),
    ),
    (
        "most probable instead of most typical",
        "TypicalLogitsWarper",
        lambda p, s: processors.TopPLogitsWarper(p.mass)(NO_IDS, s),
    ),
    ("min_tokens_to_keep forgotten", "EpsilonLogitsWarper", lambda p, s: _with(p, s, min_tokens_to_keep=1)),
    (
        "epsilon without the entropy",
        "EtaLogitsWarper",
        lambda p, s: processors.EpsilonLogitsWarper(p._eta_cutoff)(NO_IDS, s),
    ),
    ("a little more entropy", "TopHLogitsWarper", lambda p, s: _with(p, s, top_h=min(p.top_h + 0.04, 1))),
    ("another dtype", "MinPLogitsWarper", lambda p, s: p(None, s).float()),
    ("renormalised", "MinPLogitsWarper", lambda p, s: p(None, s).log_softmax(-1)),
]


def _with(processor: Any, scores: Tensor, **attributes: Any) -> Tensor:
    for name, value in attributes.items():
        setattr(processor, name, value)
    moved: Tensor = processor(None, scores)
    return moved


def _exactly(scores: Tensor, processor: Any) -> Tensor:
    kept = scores.topk(min(processor.top_k, scores.shape[1])).indices
    return torch.full_like(scores, -torch.inf).scatter(1, kept, scores.gather(1, kept))


@pytest.mark.parametrize(("label", "name", "wrong"), FILTERS)
def test_wrong_filters_are_caught(label: str, name: str, wrong: Callable[[Any, Tensor], Tensor]) -> None:
    def check_all() -> None:
        for warper in warpers():
            if warper.name == name:
                for dtype in DTYPES:
                    for kind, scores in list(rows_of(151, dtype))[:6]:
                        ours = getattr(processors, name)(**warper.arguments)
                        theirs = getattr(transformers, name)(**warper.arguments)
                        check_filter(lambda ids, s, ours=ours: wrong(ours, s), theirs, warper, kind, scores)

    with pytest.raises(AssertionError):
        check_all()


OTHERS: list[tuple[str, str, Callable[[Any, Tensor, Tensor], Tensor]]] = [
    (
        "division for every sign",
        "RepetitionPenaltyLogitsProcessor",
        lambda p, i, s: s.scatter(1, i, s.gather(1, i) / p.penalty),
    ),
    ("the whole prompt", "RepetitionPenaltyLogitsProcessor", lambda p, i, s: type(p)(p.penalty)(i, s)),
    ("one gram shorter", "NoRepeatNGramLogitsProcessor", lambda p, i, s: type(p)(max(p.ngram_size - 1, 1))(i, s)),
    (
        "the row's own n-grams",
        "EncoderNoRepeatNGramLogitsProcessor",
        lambda p, i, s: processors.NoRepeatNGramLogitsProcessor(p.ngram_size)(i, s),
    ),
    ("one token too long", "MinLengthLogitsProcessor", lambda p, i, s: p(i[:, 1:], s)),
    (
        "the prompt counts",
        "MinNewTokensLengthLogitsProcessor",
        lambda p, i, s: type(p)(0, p.min_new_tokens, p.eos_token_id)(i, s),
    ),
    (
        "only the first token of a sequence",
        "SequenceBiasLogitsProcessor",
        lambda p, i, s: type(p)({k: b for k, b in p.sequence_bias.items() if len(k) == 1} or {(0,): 0.0})(i, s),
    ),
    ("the end may be a bad word", "NoBadWordsLogitsProcessor", lambda p, i, s: type(p)(p.bad_word_ids)(i, s)),
    ("forced for ever", "ForcedBOSTokenLogitsProcessor", lambda p, i, s: p(i[:, :1], s)),
    ("the score itself", "ForcedEOSTokenLogitsProcessor", lambda p, i, s: s.where(p(i, s) > -torch.inf, -torch.inf)),
    ("infinity stays", "InfNanRemoveLogitsProcessor", lambda p, i, s: s.where(~s.isnan(), 0.0)),
    ("not normalised", "LogitNormalization", lambda p, i, s: s),
    ("one step early", "ExponentialDecayLengthPenalty", lambda p, i, s: p(torch.cat([i, i[:, :1]], 1), s)),
    ("codebooks swapped", "AlternatingCodebooksLogitsProcessor", lambda p, i, s: p(torch.cat([i, i[:, :1]], 1), s)),
]


@pytest.mark.parametrize(("label", "name", "wrong"), OTHERS)
def test_wrong_processors_are_caught(label: str, name: str, wrong: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    def check_all() -> None:
        for case in others(7):
            if case.name == name and not isinstance(case.arguments.get("sequence_bias"), list):
                for length in (1, 4, 30):
                    for _, scores in list(rows_of(7, torch.float32))[:5] + list(rows_of(7, torch.float32))[7:]:
                        ids = ids_of(7, length)
                        theirs = getattr(transformers.generation.logits_process, name)(**case.arguments)
                        ours = getattr(processors, name)(**case.arguments)
                        assert_same(wrong(ours, ids, scores), theirs(ids, scores))

    with pytest.raises(AssertionError):
        check_all()
