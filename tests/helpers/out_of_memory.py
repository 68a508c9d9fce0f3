"""Makes each allocation of every CPU op fail in turn, in a process that preloads failing_realloc.c.

`python -m tests.helpers.out_of_memory LIBRARY` prints the number of failed calls per op. It raises AssertionError if a
failed call does not raise MemoryError, changes its state, or breaks a later call of the same threads.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen import ops
from pygen.ops import BeamState, DecodeState

ROWS, VOCAB_SIZE, UNLIMITED = 8, 30_000, 2**63 - 1

logits = torch.randn(ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
history = torch.arange(40).repeat(ROWS, 1)
SHAPING: dict[str, Any] = {"top_p": 0.95, "typical_p": 0.9, "repetition_penalty": 1.3, "suppress": [5, 7]}
generator = torch.Generator()


class Case(NamedTuple):
    """An op. `call(state)` changes only `state`, the generator and its result."""

    name: str
    state: Callable[[], Any]
    call: Callable[[Any], Any]


def beams() -> BeamState:
    state = BeamState.create(history[:2], 3, 4, eos_token_ids=[3])
    state.running_scores.fill_(-1.0)
    state.token_ids[:, history.shape[1] :] = 0
    return state


def sequences() -> DecodeState:
    state = DecodeState.create(history, 3, eos_token_ids=[3])
    state.token_ids[:, history.shape[1] :] = 0
    return state


def cache() -> list[Tensor]:
    return [torch.arange(ROWS * 6000.0).view(ROWS, 2, 300, 10)]


SWAPS = torch.tensor([1, 0, 3, 2, 5, 6, 4, 4])
DRAFTS = torch.arange(ROWS * 2).view(ROWS, 2)
CASES = [
    *(
        Case(
            f"sample {source}",
            lambda: None,
            functools.partial(
                lambda source, _: ops.sample(
                    logits, **SHAPING, input_ids=history, logprobs=5, rng=source, generator=generator
                ),
                source,
            ),
        )
        for source in ("philox", "torch")
    ),
    *(
        Case(
            f"sample with a state {source}",
            sequences,
            functools.partial(
                lambda source, state: ops.prepare_sample(
                    logits, **SHAPING, rng=source, generator=generator if source == "torch" else None, state=state,
                    seed=None if source == "torch" else 1,
                )(logits),
                source,
            ),
        )
        for source in ("philox", "torch")
    ),
    Case("process_logits", lambda: None, lambda _: ops.process_logits(logits, **SHAPING, input_ids=history)),
    *(
        Case(
            f"beam_step {source}",
            beams,
            functools.partial(
                lambda source, state: ops.beam_step(
                    logits, state, **SHAPING, do_sample=source is not None, rng=source or "torch", generator=generator
                ),
                source,
            ),
        )
        for source in (None, "philox", "torch")
    ),
    Case("token_logprobs", lambda: None, lambda _: ops.token_logprobs(logits, history, top=5)),
    Case(
        "verify_draft",
        lambda: None,
        lambda _: ops.verify_draft(
            logits[:, None].repeat(1, 3, 1), DRAFTS, logits[:, None].repeat(1, 2, 1), generator=generator
        ),
    ),
    Case("reorder_cache", cache, lambda state: ops.reorder_cache(state, SWAPS)),
    Case("beam_finalize", beams, lambda state: ops.beam_finalize(state, 2)),
]  # fmt: skip


def tensors_of(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in tensors_of(item)]
    if isinstance(value, (BeamState, DecodeState)):
        return tensors_of(list(vars(value).values()))
    return [value]


def equal(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(tensors_of(a), tensors_of(b), strict=True)
    )


def failures_of(case: Case, threads: int, shim: Any) -> int:
    """Makes the first, the second, ... allocation fail, each in new threads, until all have failed."""
    generator.manual_seed(7)
    expected_state = case.state()
    expected = case.call(expected_state)
    for number in range(1000):
        seen: list[Any] = []

        def attempt(number: int = number, seen: list[Any] = seen) -> None:
            torch.set_num_threads(threads)
            generator.manual_seed(7)
            noise, state = generator.get_state(), case.state()
            before = copy.deepcopy(state)
            shim.fail_after(number)
            try:
                case.call(state)
            except MemoryError as error:
                seen.append(error)
            refused = shim.failures()
            shim.fail_after(UNLIMITED)
            assert bool(seen) == (refused > 0), (case.name, number, refused)
            if not seen:
                return
            assert equal(state, before), f"{case.name}: the state changed"
            assert generator.get_state().equal(noise), f"{case.name}: the generator advanced"
            # The failure must not corrupt the memory that threads keep between calls.
            assert equal(case.call(state), expected), f"{case.name}: another result after allocation {number} failed"
            assert equal(state, expected_state), f"{case.name}: another state after allocation {number} failed"

        errors: list[BaseException] = []

        def run(attempt: Callable[[], None] = attempt, errors: list[BaseException] = errors) -> None:
            try:
                attempt()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        if not seen:
            return number
    raise AssertionError(f"{case.name}: allocations without end")


def main(library: str) -> None:
    shim = ctypes.CDLL(library)
    shim.fail_after.argtypes, shim.failures.restype = [ctypes.c_long], ctypes.c_long
    for case in CASES:
        for threads in (1, 3):
            print(f"{case.name}, {threads} threads: {failures_of(case, threads, shim)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
