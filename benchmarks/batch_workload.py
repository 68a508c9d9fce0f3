"""The workload of `bench_generate_batch`: prompts whose lengths, and those of their answers, differ widely."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

PROMPT_LENGTHS, NEW_TOKENS = (16, 512), (16, 256)
# Of the Pareto distribution: a quarter of the lengths is more than three times the least.
_SHAPE = 1.1


@dataclass(frozen=True)
class Job:
    """One prompt, and the number of tokens after which its answer ends."""

    input_ids: list[int]
    new_tokens: int
    seed: int

    def as_prompt(self) -> dict[str, Any]:
        """For `pygen.generate_batch`."""
        return {"input_ids": self.input_ids, "max_new_tokens": self.new_tokens, "seed": self.seed}


def jobs(text_ids: list[int], count: int, seed: int = 16) -> list[Job]:
    """`count` prompts, pieces of a text. Lengths are drawn from a Pareto distribution cut at the longest."""
    source = random.Random(seed)
    made = []
    for number in range(count):
        length, new_tokens = _length(source, *PROMPT_LENGTHS), _length(source, *NEW_TOKENS)
        first = source.randrange(len(text_ids) - length)
        made.append(Job(text_ids[first : first + length], new_tokens, seed=number))
    return made


def _length(source: random.Random, least: int, longest: int) -> int:
    return min(int(least * source.paretovariate(_SHAPE)), longest)
