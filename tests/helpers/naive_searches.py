"""Simple, slow diverse and constrained beam search on lists: every step runs a forward over all whole sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tokens = tuple[int, ...]


class Hypothesis(NamedTuple):
    score: float  # sum, or in a pool the sum normalised by length
    tokens: Tokens  # without the prompt


@dataclasses.dataclass(frozen=True)
class Task:
    """The settings of a search.

    log_probs: maps sequences with their prompt to a list of processed log-probabilities each. Its second argument lists
    tokens to penalise, repeated as often as they were chosen.
    """

    log_probs: Callable[[list[Tokens], list[int]], list[list[float]]]
    prompt: Tokens
    num_beams: int
    max_new_tokens: int
    eos: Tokens
    length_penalty: float
    early_stopping: bool | str

    @property
    def num_candidates(self) -> int:
        return max(2, 1 + len(self.eos)) * self.num_beams


class Pool:
    """The best finished hypotheses of a beam search, and whether the search can still improve on them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.best: list[Hypothesis] = []
        self.over = False

    def add(self, hypotheses: list[Hypothesis]) -> None:
        self.best = _best(self.best + [self.normalised(h) for h in hypotheses])[: self.task.num_beams]

    def normalised(self, hypothesis: Hypothesis) -> Hypothesis:
        return hypothesis._replace(score=hypothesis.score / len(hypothesis.tokens) ** self.task.length_penalty)

    def look_ahead(self, running: list[Hypothesis]) -> None:
        """Ends the search if no hypothesis in `running` can beat the worst one in the pool."""
        task = self.task
        if not running:
            self.over = True
        elif len(self.best) == task.num_beams:
            longest = task.early_stopping == "never" and task.length_penalty > 0
            length = task.max_new_tokens if longest else len(running[0].tokens)
            attainable = max(h.score for h in running) / length**task.length_penalty
            self.over = task.early_stopping is True or attainable <= self.best[-1].score


def _best(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score)


def _candidates(task: Task, running: list[Hypothesis], log_probs: list[list[float]]) -> list[Hypothesis]:
    every = [
        Hypothesis(beam.score + log_prob, (*beam.tokens, token))
        for beam, row in zip(running, log_probs, strict=True)
        for token, log_prob in enumerate(row)
        if log_prob > -torch.inf
    ]
    return _best(every)[: task.num_candidates]


def diverse(task: Task, num_groups: int) -> list[Hypothesis]:
    """Returns all hypotheses of a prompt, best first. `task.num_beams` is the size of a group."""
    pools = [Pool(task) for _ in range(num_groups)]
    groups = [[Hypothesis(0.0, ())] for _ in range(num_groups)]
    for step in range(task.max_new_tokens):
        chosen: list[int] = []
        for number, pool in enumerate(pools):
            if pool.over:
                continue
            rows = task.log_probs([task.prompt + beam.tokens for beam in groups[number]], chosen)
            candidates = _candidates(task, groups[number], rows)
            last = step + 1 == task.max_new_tokens
            pool.add([h for h in candidates[: task.num_beams] if last or h.tokens[-1] in task.eos])
            groups[number] = [h for h in candidates if h.tokens[-1] not in task.eos][: task.num_beams]
            pool.look_ahead(groups[number])
            chosen += [h.tokens[-1] for h in groups[number]]
    return _best([h for pool in pools for h in pool.best])


def progress(constraints: list[list[Tokens]], tokens: Tokens) -> tuple[int, bool, list[int]]:
    """Returns (bank, whether all are met, tokens that advance) after `tokens`.

    A constraint is a list of words; a text has to contain one of them.
    """
    pending, current, num_met = list(range(len(constraints))), -1, 0
    seen: Tokens = ()
    for token in tokens:
        if not pending and current < 0:
            break
        if current < 0:
            current = next((c for c in pending if any(word[0] == token for word in constraints[c])), -1)
            if current < 0:
                continue
            pending.remove(current)
            seen = (token,)
        elif any(word[: len(seen) + 1] == (*seen, token) for word in constraints[current]):
            seen = (*seen, token)
        else:
            pending.append(current)
            current, seen = -1, ()
        if seen and seen in constraints[current]:
            num_met += 1
            current, seen = -1, ()
    heights = [max(len(word) for word in words) for words in constraints]
    bank = num_met * max(heights)
    if current >= 0:
        bank += max(heights) - (heights[current] - len(seen))
    active = pending if current < 0 else [current]
    steps = [word[len(seen)] for c in active for word in constraints[c] if word[: len(seen)] == seen]
    return bank, not pending and current < 0, steps


def constrained(task: Task, constraints: list[list[Tokens]]) -> list[Hypothesis]:
    """Returns the hypotheses of a prompt, best first. Those that meet all constraints precede the others."""

    def state_of(hypothesis: Hypothesis) -> tuple[int, bool, list[int]]:
        return progress(constraints, task.prompt + hypothesis.tokens)

    pool, running = Pool(task), [Hypothesis(0.0, ())]
    for step in range(task.max_new_tokens):
        rows = task.log_probs([task.prompt + beam.tokens for beam in running], [])
        natural = _candidates(task, running, rows)
        ended = [h for h in natural[: task.num_beams] if h.tokens[-1] in task.eos]
        going = [h for h in natural if h.tokens[-1] not in task.eos][: task.num_beams]
        for beam, row in zip(running, rows, strict=True):
            _, is_met, steps = state_of(beam)
            for token in [] if is_met else steps:
                forced = Hypothesis(beam.score + row[token], (*beam.tokens, token))
                if row[token] > -torch.inf and forced not in going and forced not in ended:
                    (ended if token in task.eos else going).append(forced)
        complete = [beam for beam in running if state_of(beam)[1]]
        if complete and not any(state_of(h)[1] for h in going + ended):
            row = rows[running.index(complete[0])]
            tokens = [token for token in range(len(row)) if token not in task.eos and row[token] > -torch.inf]
            best = max(tokens, key=row.__getitem__, default=None)
            if best is not None:
                going.append(Hypothesis(complete[0].score + row[best], (*complete[0].tokens, best)))
        running = _from_every_bank(going, lambda h: state_of(h)[0], task.num_beams)
        last = step + 1 == task.max_new_tokens
        pool.add([h for h in ended + (running if last else []) if state_of(h)[1]])
        missing = [h for h in running or ended if not state_of(h)[1]]
        pool.look_ahead(running)
        if pool.over or last:
            break
    free = task.num_beams - len(pool.best)
    return pool.best + [pool.normalised(h) for h in _best(missing)][:free]


def _from_every_bank(
    hypotheses: list[Hypothesis], bank_of: Callable[[Hypothesis], int], count: int
) -> list[Hypothesis]:
    banks: dict[int, list[Hypothesis]] = {}
    for hypothesis in _best(hypotheses):
        banks.setdefault(bank_of(hypothesis), []).append(hypothesis)
    chosen: list[Hypothesis] = []
    while len(chosen) < count and any(banks.values()):
        for bank in sorted(banks, reverse=True):
            chosen += banks[bank][:1]
            banks[bank] = banks[bank][1:]
    return _best(chosen[:count])


def model_log_probs(
    model: Any, processors: Any, penalty: float = 0.0
) -> Callable[[list[Tokens], list[int]], list[list[float]]]:
    """Returns `Task.log_probs` of a model whose forward takes `input_ids`. Each mention of a token costs `penalty`."""

    def log_probs(sequences: list[Tokens], avoid: list[int]) -> list[list[float]]:
        input_ids = torch.tensor(sequences)
        output = model(input_ids)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        scores = logits[:, -1].float().log_softmax(-1)
        for token in avoid:
            scores[:, token] -= penalty
        rows: list[list[float]] = processors(input_ids, scores).tolist()
        return rows

    return log_probs
