"""Reference beam searches: hypotheses as plain lists, a model that is a table, caches that follow the beams."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pygen.ops import BeamStepOutput, beam_step, process_logits
from pygen.ops._beam_state import NEVER_WINS, BeamState

# Kernel and reference round their float32 sums differently. Two scores with a smaller relative distance may swap ranks.
BAND = 2e-5


class Hypothesis(NamedTuple):
    score: np.float32
    tokens: tuple[int, ...] = ()  # the generated ones
    parents: tuple[int, ...] = ()  # the parent beam of each token, numbered across all prompts
    ended: bool = False


class ToyModel:
    """Log-probabilities that depend on every token so far and its position, from a table (states, vocab_size)."""

    def __init__(self, table: Tensor) -> None:
        self.table = table.numpy()

    def __call__(self, sequences: np.ndarray) -> np.ndarray:
        """(rows, length) ids -> (rows, vocab_size) float32."""
        places = np.arange(1, sequences.shape[1] + 1)
        log_probs: np.ndarray = self.table[(sequences * places).sum(axis=1) % len(self.table)]
        return log_probs


class PromptSearch:
    """The beams of one prompt, best first; of equals the first comes first.

    Every operation rounds scores to float32, because -1e9, which marks a missing beam, must swallow what is added.
    At least K = max(2, 1 + number of EOS ids) * n continuations must exist.
    """

    def __init__(
        self,
        first_beam: int,
        num_beams: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        length_penalty: float,
        early_stopping: bool | str,
    ) -> None:
        self.first_beam = first_beam
        self.num_beams = num_beams
        self.max_new_tokens = max_new_tokens
        self.eos_token_ids = eos_token_ids
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        none = Hypothesis(np.float32(NEVER_WINS))
        # Only one beam has a finite score: equal beams would find the same continuations num_beams times.
        self.running = [Hypothesis(np.float32(0)), *[none] * (num_beams - 1)]
        self.finished = [none] * num_beams
        self.open = True
        self.all_ended = False

    def advance(self, log_probs: np.ndarray) -> None:
        """Takes one step. log_probs: (num_beams, vocab_size) float32 of the running beams."""
        candidates = self._candidates(log_probs)
        if self.open and not (self.early_stopping is True and self.is_full):
            ended = [self._normalised(c) for c in candidates[: self.num_beams] if c.ended]
            self.finished = _best(self.finished + ended, self.num_beams)
        lost = np.float32(NEVER_WINS)
        after = [c._replace(score=c.score + lost, ended=False) if c.ended else c for c in candidates]
        self.running = _best(after, self.num_beams)
        self.all_ended = all(candidate.ended for candidate in candidates)
        self.open = self.open and bool(self._attainable() > min(hypothesis.score for hypothesis in self.finished))

    @property
    def is_full(self) -> bool:
        return all(hypothesis.ended for hypothesis in self.finished)

    def _candidates(self, log_probs: np.ndarray) -> list[Hypothesis]:
        sums = np.array([beam.score for beam in self.running])[:, None] + log_probs
        count = max(2, 1 + len(self.eos_token_ids)) * self.num_beams
        candidates = []
        for place in np.argsort(-sums.ravel(), kind="stable")[:count].tolist():
            beam, token = divmod(place, sums.shape[1])
            tokens = (*self.running[beam].tokens, token)
            ended = token in self.eos_token_ids or len(tokens) == self.max_new_tokens
            parents = (*self.running[beam].parents, self.first_beam + beam)
            candidates.append(Hypothesis(sums[beam, token], tokens, parents, ended))
        return candidates

    def _normalised(self, hypothesis: Hypothesis) -> Hypothesis:
        return hypothesis._replace(score=hypothesis.score / self._normaliser(len(hypothesis.tokens)))

    def _normaliser(self, length: int) -> np.float32:
        power: np.float32 = np.float32(float(length) ** self.length_penalty)
        return power

    def _attainable(self) -> np.float32:
        longer_is_better = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_new_tokens if longer_is_better else len(self.running[0].tokens)
        best: np.float32 = self.running[0].score / self._normaliser(length)
        return best


def _best(hypotheses: list[Hypothesis], count: int) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:count]


def search(model: ToyModel, prompts: np.ndarray, num_beams: int, **settings: Any) -> tuple[list[PromptSearch], int]:
    """Searches from prompts (batch_size, prompt_length) to the end; returns the searches and the number of steps."""
    searches = [PromptSearch(b * num_beams, num_beams, **settings) for b in range(len(prompts))]
    num_steps, over = 0, False
    while not over:
        for prompt, item in zip(prompts.tolist(), searches, strict=True):
            item.advance(model(np.array([prompt + list(beam.tokens) for beam in item.running])))
        num_steps += 1
        full = settings["early_stopping"] is True and all(item.is_full for item in searches)
        over = full or not any(item.open for item in searches) or all(item.all_ended for item in searches)
    return searches, num_steps


class Caches:
    """A model's cache of the generated positions: one unique label per row and step.

    `by_row` moves as `beam_step` requires; `by_beam` gathers whole rows by their parents. Both must be equal.
    """

    def __init__(self, state: BeamState) -> None:
        self.state = state
        self.by_row = torch.full((state.rows, state.max_new_tokens), -1)
        self.by_beam = self.by_row.clone()

    def follow(self, out: BeamStepOutput, step: int) -> None:
        """Moves both caches after `step`, compares them, and writes the labels of the next forward."""
        before = self.by_row.clone()
        for row, (source, shared) in enumerate(zip(out.source_rows.tolist(), out.shared.tolist(), strict=True)):
            self.by_row[row, shared:step] = before[source, shared:step]
        self.by_beam = self.by_beam[self.state.step_parents[step].long()]
        slots = self.state.slots.flatten()
        assert self.by_row[slots].equal(self.by_beam)
        self._check_shared(step)
        self.by_beam[:, step] = torch.arange(self.state.rows) + step * self.state.rows
        self.by_row[slots, step] = self.by_beam[:, step]

    def _check_shared(self, step: int) -> None:
        labels = self.by_row[:, :step].view(self.state.batch_size, self.state.num_beams, step)
        common = (labels[:, :, None] == labels[:, None]).cumprod(-1).sum(-1)
        common.diagonal(dim1=1, dim2=2).zero_()
        assert self.state.shared.equal(common.to(torch.int32))


def walked(state: BeamState, step: int) -> Tensor:
    """Returns (rows, step + 1) by beam: the generated tokens, read only from the token and parent tables."""
    tokens, beam = [], torch.arange(state.rows)
    for t in range(step, -1, -1):
        tokens.append(state.step_tokens[t, beam])
        beam = state.step_parents[t, beam].long()
    return torch.stack(tokens[::-1], dim=1)


def copied(state: BeamState) -> BeamState:
    """Returns an independent copy. If the history is the token table, it is so in the copy."""
    return copy.deepcopy(state)


def candidates_of(
    logits: Tensor, state: BeamState, *, step: int = 0, step_of: Callable[..., BeamStepOutput] = beam_step, **knobs: Any
) -> tuple[Tensor, Tensor]:
    """Returns token ids and rows of the candidates that `stopping_criteria` receives, (B, K) each.

    `state` does not change. Column 0 of the prompt must hold the row's number.
    """
    shown: list[Tensor] = []

    def show(sequences: Tensor) -> bool:
        shown.append(sequences)
        return False

    step_of(logits, copied(state), step=step, stopping_criteria=show, **knobs)
    (sequences,) = shown
    shape = (state.batch_size, state.num_candidates)
    return sequences[:, -1].view(shape), sequences[:, 0].view(shape)


def continuation_values(
    logits: Tensor, state: BeamState, *, step: int, normalized: bool = False, noise: Tensor | None = None, **knobs: Any
) -> tuple[Tensor, Tensor]:
    """Returns summed scores and their sort keys, (B, n * vocab_size) float64 by beam, by the definition of the op."""
    x = logits.float() if normalized else logits.double().log_softmax(-1).float()
    knobs = {"do_sample": noise is not None, **knobs}
    length = state.prompt_length + step
    history: dict[str, Any] = {"input_ids": state.history[:, :length], "prompt_lengths": state.prompt_length}
    scores = process_logits(x, **history, **knobs, backend="torch")
    bad = scores.isnan() | (scores == torch.inf)
    scores[bad.any(dim=1)] = -torch.inf
    sums = (scores[state.slots] + state.running_scores[..., None]).flatten(1)
    values = sums.double() if noise is None else sums.double() - noise.double().log().view(sums.shape)
    return sums.double(), values


def is_close_call(state: BeamState, sums: Tensor, values: Tensor, step: int, knobs: dict[str, Any]) -> bool:
    """Returns whether rounding may decide a step.

    It may if two values that the step compares differ by less than BAND but are not equal: two candidates, two
    normalised scores, or a score and its threshold.
    """
    count, length_penalty = min(state.num_candidates, values.shape[1]), knobs["length_penalty"]
    order = values.argsort(dim=1, descending=True)
    drawn = sums.gather(1, order[:, :count])
    normalised = drawn / (step + 1) ** length_penalty
    attainable = torch.cat([drawn / length**length_penalty for length in (step + 1, state.max_new_tokens)], dim=1)
    rows = (
        values.gather(1, order[:, : count + 1]),
        drawn,
        torch.cat([normalised, state.finished_scores, attainable], dim=1),
    )
    return any(_has_near(row[row > NEVER_WINS / 2]) for table in rows for row in table)


def _has_near(values: Tensor) -> bool:
    values = values.sort().values
    gaps = values[1:] - values[:-1]
    return bool(((gaps > 0) & (gaps <= BAND * (1 + values[1:].abs()))).any())


def difference(actual: tuple[BeamState, BeamStepOutput], expected: tuple[BeamState, BeamStepOutput]) -> str:
    """Returns the first field in which a step's results differ, with both values, or ""."""
    for one, other in zip(actual, expected, strict=True):
        names = one._fields if isinstance(one, BeamStepOutput) else vars(one)
        for name in names:
            a, b = getattr(one, name), getattr(other, name)
            if not isinstance(a, Tensor):
                continue
            same = torch.allclose(a, b, rtol=BAND, atol=BAND) if a.is_floating_point() else a.equal(b)
            if not same:
                return f"{name}: {a.tolist()} for {b.tolist()}"
    return ""
