"""Stopping criteria: callables that decide after every token which rows end."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.config.config import GenerationConfig
from pygen.notices import log, warn
from pygen.request.protocols import Tokenizer
from pygen.stopping.search import stop_search
from pygen.stopping.tables import StopTables
from pygen.stopping.token_bytes import token_bytes

logger = logging.getLogger(__name__)

# (input_ids, scores so far or None) -> (rows,) bool, or one bool for all rows
Criterion = Callable[..., Tensor | bool]
Scores = Sequence[Tensor] | None


class StoppingCriteria:
    """Base class: `criterion(input_ids, scores)` decides after every token which rows end with it.

    input_ids: (rows, length) int64, the prompt and everything generated so far.
    scores: one (rows, vocab_size) tensor of processed scores a step, or None unless `generate` is asked for
        `output_scores` and `return_dict_in_generate`.
    Returns (rows,) bool, or one bool for all rows.
    """

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor | bool:
        raise NotImplementedError


class StoppingCriteriaList(list[Criterion]):
    """Several criteria; a row ends once any of them ends it."""

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: object) -> Tensor:
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            done = done | criterion(input_ids, scores, **kwargs)
        return done

    @property
    def max_length(self) -> int | None:
        """The limit of the first `MaxLengthCriteria`."""
        return next((criterion.max_length for criterion in self if isinstance(criterion, MaxLengthCriteria)), None)


class MaxLengthCriteria(StoppingCriteria):
    """Ends all rows once length >= max_length, prompt included.

    max_position_embeddings: the number of the model's positions; the first longer text logs a warning.
    """

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings
        self._warned = False

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: object) -> Tensor:
        rows, length = input_ids.shape
        done = length >= self.max_length
        limit = self.max_position_embeddings
        if limit is not None and length > limit and not done and not self._warned:
            self._warned = True
            log(logger, f"The model has {limit} positions; longer texts may fail or be of poor quality.")
        return torch.full((rows,), done, dtype=torch.bool, device=input_ids.device)


class MaxTimeCriteria(StoppingCriteria):
    """Ends all rows once more than `max_time` seconds have passed since `initial_timestamp`.

    initial_timestamp: as `time.time()` returns it; None means the time of construction.
    """

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: object) -> Tensor:
        done = time.time() - self.initial_timestamp > self.max_time
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


class EosTokenCriteria(StoppingCriteria):
    """Ends rows whose last token, or one of the last `new_token_length`, is one of `eos_token_id`: an id, a list, or a
    tensor."""

    def __init__(self, eos_token_id: int | list[int] | Tensor) -> None:
        if not isinstance(eos_token_id, Tensor):
            eos_token_id = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id, device="cpu")
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: Tensor, scores: Scores, new_token_length: int = 1, **kwargs: object) -> Tensor:
        self.eos_token_id = self.eos_token_id.to(input_ids.device)
        return torch.isin(input_ids[:, -new_token_length:], self.eos_token_id).any(dim=1)


class ConfidenceCriteria(StoppingCriteria):
    """Ends rows whose last token had a probability below the threshold: softmax(scores[-1])[row, token] < threshold.

    A token without a column in the scores, for example a pad id beyond them, ends nothing.
    """

    def __init__(self, assistant_confidence_threshold: float) -> None:
        self.assistant_confidence_threshold = assistant_confidence_threshold

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: object) -> Tensor:
        if scores is None:
            raise ValueError("`ConfidenceCriteria` needs `output_scores=True` and `return_dict_in_generate=True`")
        last, vocab_size = input_ids[:, -1:], scores[-1].shape[-1]
        probability: Tensor = scores[-1].softmax(-1).gather(1, last.clamp(0, vocab_size - 1))[:, 0]
        ended: Tensor = (probability < self.assistant_confidence_threshold) & ((last >= 0) & (last < vocab_size))[:, 0]
        return ended


class StopStringCriteria(StoppingCriteria):
    """Ends rows in which a stop string ends inside the last token; the rest of that token stays in the text.

        text = the bytes of the tokens, one after another
        row ends  <=>  some stop string ends in text after the start of its last token and not after its end

    tokenizer: see `token_bytes.token_bytes`. pygen reads its vocabulary once, and prepares the search for a set of
        strings once; a cache of 64 MiB keeps the latest searches.
    stop_strings: a string or several, none empty. The search compares UTF-8 bytes, so a character may span tokens.
    The search reads rows as far back as the strings reach, prompt included; unknown ids match nothing.
    Errors: ValueError where no token can end any of the strings, and for lone surrogates.

    For up to 256 bytes of strings a call reads nothing back from a GPU (`pygen.stopping.tables`). More or longer
    strings are looked up on the host (`pygen.stopping.suffixes`).
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: str | list[str]) -> None:
        strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings
        if not isinstance(strings, (list, tuple)) or not all(isinstance(string, str) for string in strings):
            raise TypeError(f"`stop_strings` must be a string or a list of strings, got {stop_strings!r:.80}")
        if not strings or not all(strings):
            raise ValueError(f"`stop_strings` must hold at least one string and no empty one, got {stop_strings!r:.80}")
        self.stop_strings: tuple[str, ...] = tuple(strings)
        self.num_stop_strings = len(strings)
        self._search = stop_search(token_bytes(tokenizer), self.stop_strings)

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: object) -> Tensor:
        if isinstance(self._search, StopTables):
            self._search = self._search.to(input_ids.device)
        return self._search.ended(input_ids)


def validate_stopping_criteria(stopping_criteria: StoppingCriteriaList, max_length: int) -> StoppingCriteriaList:
    """A deep copy, with a `MaxLengthCriteria` added if the list has none. UserWarning if its limit is another one."""
    criteria = copy.deepcopy(stopping_criteria)
    if criteria.max_length is None:
        criteria.append(MaxLengthCriteria(max_length=max_length))
    elif criteria.max_length != max_length:
        warn(f"`stopping_criteria` end at {criteria.max_length} tokens, `max_length` is {max_length}")
    return criteria


@dataclass(frozen=True)
class Stopping:
    """Everything that ends the rows of one call.

    max_new_tokens: the loop runs at most so many steps.
    eos_token_ids: the op that draws compares each token with these; None where no token ends a row.
    max_time: seconds that the monitor allows, or None.
    criteria: the monitor calls these after every step, in this order.
    pads: whether rows that ended emit `pad_token_id`; if not, they go on until all rows have ended. It is False where
        `eos_token_id` can never come and no pad exists: `eos_token_id=-1` means "never stop".
    """

    max_new_tokens: int
    eos_token_ids: list[int] | None
    max_time: float | None
    criteria: tuple[Criterion, ...]
    pads: bool


def build_criteria(
    given: Sequence[Criterion] | None,
    config: GenerationConfig,
    *,
    prompt_length: int,
    max_new_tokens: int,
    eos_token_ids: list[int] | None,
    pad_token_id: int | None,
    tokenizer: Tokenizer | None = None,
) -> Stopping:
    """Joins the criteria of the settings with the caller's, in Hugging Face's order.

    The order is: length, time, stop strings, end-of-sequence tokens, confidence, then the caller's. A criterion of
    exactly one of these classes, pygen's or transformers', replaces that of the setting, with a warning. Length and
    end-of-sequence tokens cost nothing per step, whoever sets them.

    Errors: TypeError for anything but callables, ValueError for stop strings without a tokenizer.
    """
    if given is None:
        given = ()
    if not isinstance(given, Sequence) or not all(callable(criterion) for criterion in given):
        raise TypeError(f"`stopping_criteria` must be a list of callables, got {given!r:.80}")
    threshold = config.assistant_confidence_threshold or 0.0
    strings = config.stop_strings or None
    asked: dict[type[StoppingCriteria], bool] = {
        MaxLengthCriteria: True,
        MaxTimeCriteria: config.max_time is not None,
        StopStringCriteria: strings is not None,
        EosTokenCriteria: eos_token_ids is not None,
        ConfidenceCriteria: bool(config.is_assistant) and threshold > 0,
    }
    # transformers' classes and pygen's, with the same attributes.
    by_hand: dict[type[StoppingCriteria], list[Any]]
    by_hand = {kind: [criterion for criterion in given if _is_exactly(criterion, kind)] for kind in asked}
    for kind, from_setting in asked.items():
        if from_setting and by_hand[kind]:
            log(logger, f"`stopping_criteria`: the {kind.__name__} given takes the place of the setting.")

    if by_hand[MaxLengthCriteria]:
        limit = min(int(criterion.max_length) for criterion in by_hand[MaxLengthCriteria])
        max_new_tokens = max(1, limit - prompt_length)
    pads = (
        eos_token_ids is not None and max(*eos_token_ids, -1 if pad_token_id is None else pad_token_id) >= 0
    ) or any(hasattr(criterion, "eos_token_id") for criterion in given)
    if by_hand[EosTokenCriteria]:
        ids = [
            torch.as_tensor(criterion.eos_token_id, device="cpu").reshape(-1) for criterion in by_hand[EosTokenCriteria]
        ]
        eos_token_ids = [int(token_id) for token_id in torch.cat(ids)] or None

    criteria: list[Criterion] = []
    for kind in (MaxTimeCriteria, StopStringCriteria, ConfidenceCriteria):
        if asked[kind] and by_hand[kind]:
            criteria.append(by_hand[kind][0])
        elif asked[kind] and kind is StopStringCriteria:
            if tokenizer is None:
                raise ValueError("`stop_strings` need the model's tokenizer: pass it as `tokenizer=`")
            criteria.append(StopStringCriteria(tokenizer, config.stop_strings or []))
        elif asked[kind] and kind is ConfidenceCriteria:
            criteria.append(ConfidenceCriteria(threshold))
    elsewhere = {id(criterion) for criterion in (*criteria, *by_hand[MaxLengthCriteria], *by_hand[EosTokenCriteria])}
    return Stopping(
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        max_time=None if by_hand[MaxTimeCriteria] else config.max_time,
        criteria=(*criteria, *(criterion for criterion in given if id(criterion) not in elsewhere)),
        pads=pads,
    )


def _is_exactly(criterion: object, kind: type[StoppingCriteria]) -> bool:
    """Whether the class is `kind`, or transformers' class of that name, and not a subclass."""
    cls = type(criterion)
    is_theirs = cls.__name__ == kind.__name__ and cls.__module__.startswith("transformers.generation.")
    return cls is kind or is_theirs
