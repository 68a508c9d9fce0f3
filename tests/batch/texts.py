"""A few prompts of different lengths, and the tokens that `generate` gives for each alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.batch.alone import run_alone
from tests.batch.models import small_model

# (prompt, tokens to generate): with three rows, the first two end while others wait.
_SIZES = ((5, 3), (2, 6), (9, 10), (1, 4), (6, 8), (3, 5))


def prompts(**settings: Any) -> list[dict[str, Any]]:
    """Prompts that sample under their own seeds."""
    return [
        {
            "input_ids": [(11 * index + 7 * place) % 101 for place in range(length)],
            "max_new_tokens": count,
            "do_sample": True,
            "seed": index,
            **settings,
        }
        for index, (length, count) in enumerate(_SIZES)
    ]


def tokens_alone(index: int) -> list[int]:
    """The generated tokens of prompt `index`."""
    return [*_all_tokens()[index]]


@functools.cache
def _all_tokens() -> tuple[tuple[int, ...], ...]:
    texts = []
    for prompt in prompts():
        output = run_alone(small_model("llama"), prompt)
        texts.append(tuple(output.sequences[0, len(prompt["input_ids"]) :].tolist()))
    return tuple(texts)


@contextlib.contextmanager
def before_forward(model: Any, act: Callable[[int], object]) -> Iterator[None]:
    """Calls `act` with 0, 1, 2, ... before the forwards of `model`."""
    calls = iter(range(10**6))
    hook = model.register_forward_pre_hook(lambda *_: act(next(calls)) and None)
    try:
        yield
    finally:
        hook.remove()


def counted(batch: Iterable[Any], read: list[int]) -> Iterator[Any]:
    """The prompts, whose numbers go into `read` as they are read."""
    for index, prompt in enumerate(batch):
        read.append(index)
        yield prompt


class Acting:
    """A processor that acts before it chooses token number `step` of a text with `prompt_length` ids."""

    def __init__(self, act: Callable[[], object], step: int, prompt_length: int) -> None:
        self._act, self._length = act, prompt_length + step

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == self._length:
            self._act()
        return scores


class ActingCriterion(Acting):
    """A criterion that acts after token number `step`, from 0."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == self._length + 1:
            self._act()
        return False


class ActingPrefix(Acting):
    """A `prefix_allowed_tokens_fn` that allows every id."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # The first argument is the number of the prompt, the second the ids of the text.
        if len(scores) == self._length:
            self._act()
        return range(101)
