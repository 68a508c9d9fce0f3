"""Counts, in Triton's interpreter, the launches of a call and the loads of each logit, score, draft or history token.

    TRITON_INTERPRET=1 python -m tests.helpers.triton_traffic

prints one JSON object per case: {"case", "launches", "most", "least", ...}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pygen.ops import prepare_sample, verify_draft
from tests.helpers.logits import make_history, make_logits

# One launch scans rows of up to SMALL tokens and draws from them.
SMALL, LARGE = 4096, 9001

LOGITS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda size: make_logits("normal", 2, size),
    "spread": lambda size: make_logits("spread", 2, size),
    "half": lambda size: make_logits("spread", 2, size, dtype=torch.bfloat16),
    "ties": lambda size: torch.ones(2, size),
    "bad": lambda size: make_logits("normal", 2, size).index_fill(1, torch.tensor([size // 2]), math.nan),
}
KNOBS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "greedy": {"do_sample": False},
    "common": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "many": {"top_k": 3000},
    "nucleus": {"top_p": 0.9},
    "min_p": {"min_p": 0.05, "temperature": 1.5},
    "typical_p": {"typical_p": 0.5},
    "top_h": {"top_h": 0.5, "logprobs": 2},
    "logprobs": {"logprobs": 3},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "no_repeat_ngram_size": 1, "top_k": 20},
}
CASES = [
    *(("normal", knobs, size) for size in (1, 111) for knobs in KNOBS),
    *(("spread", knobs, SMALL) for knobs in ("neutral", "common", "nucleus", "penalties")),
    *((logits, knobs, LARGE) for logits in LOGITS for knobs in ("common", "nucleus", "min_p")),
    *(("half", knobs, LARGE) for knobs in ("neutral", "greedy", "many", "typical_p", "top_h", "logprobs", "penalties")),
]

# The programs of a row share the reading of a history from 4,096 tokens on.
HISTORIES = [4095, 4096, 5000]
# By logits and name, filters of which the first reads whole rows.
FILTERS: dict[tuple[str, str], dict[str, Any]] = {
    ("spread", "one"): {"typical_p": 0.5},
    ("spread", "two"): {"typical_p": 0.5, "epsilon_cutoff": 1e-3},
    ("ties", "one"): {"typical_p": 0.5},
    ("ties", "two"): {"typical_p": 0.5, "epsilon_cutoff": 1e-5},
}
DRAFTS = [(passing, temperature) for passing in (0, 2, 3) for temperature in (0.0, 0.7)]


@contextmanager
def counted_loads(tensor: Tensor) -> Iterator[np.ndarray]:
    """Counts the interpreter's loads of each element of `tensor`."""
    from triton.runtime import interpreter

    builder, size = interpreter.InterpreterBuilder, tensor.element_size()
    counts = np.zeros(tensor.untyped_storage().nbytes() // size, dtype=np.int64)
    # The interpreter runs a load without a mask as one with a mask of ones.
    masked_load = builder.create_masked_load

    def counting(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        at = (pointers.data[mask.data].astype(np.int64) - tensor.data_ptr()) // size
        np.add.at(counts, at[(at >= 0) & (at < counts.size)], 1)
        return masked_load(self, pointers, mask, *rest)

    builder.create_masked_load = counting
    try:
        yield counts
    finally:
        builder.create_masked_load = masked_load


class _TorchOps(TorchDispatchMode):
    """Records every op that torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def observed_launches() -> Iterator[list[Any]]:
    from pygen.triton_kernels import _specialization

    launched: list[Any] = []
    _specialization.observers.append(launched.append)
    try:
        yield launched
    finally:
        _specialization.observers.remove(launched.append)


def measure(kind: str, setting: str, size: int) -> dict[str, Any]:
    from pygen.triton_kernels import sample as kernels

    logits = LOGITS[kind](size).contiguous()
    prepared = prepare_sample(logits, **KNOBS[setting], input_ids=make_history(2, 9, size), seed=1, backend="triton")
    with observed_launches() as launched, counted_loads(logits) as counts:
        prepared(logits)

    launch, kernels.launch = kernels.launch, lambda *arguments, **keywords: None
    with _TorchOps() as ops:
        prepared(logits)
    kernels.launch = launch
    return {
        "launches": len(launched),
        "most": int(counts.max()),
        "least": int(counts.min()),
        "torch_ops": sorted(ops.seen),
    }


def measure_history(length: int) -> dict[str, Any]:
    """The loads of each history token by the scan, whose programs share the row."""
    from pygen.triton_kernels import _arguments

    logits, history = make_logits("normal", 1, LARGE), make_history(1, length, LARGE)
    prepared = prepare_sample(logits, repetition_penalty=1.3, input_ids=history, seed=1, backend="triton")
    with counted_loads(history) as counts:
        prepared(logits)
        prepared(logits)
    programs, _ = _arguments.parts_of_rows(1, LARGE, logits.device)
    return {"programs": programs, "most": int(counts.max()) / 2, "least": int(counts.min()) / 2}


def measure_filters(kind: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """The loads of each score of a row that the first filter reads whole."""
    from pygen.triton_kernels import sample as kernels

    logits = LOGITS[kind](LARGE)
    seen: list[Tensor] = []
    launch, kernels.launch = kernels.launch, lambda *arguments, **keywords: seen.append(arguments[4].scores)
    prepared = prepare_sample(logits, **knobs, seed=1, backend="triton")
    prepared(logits)
    kernels.launch = launch
    with counted_loads(seen[0]) as counts:
        prepared(logits)
    return {"most": int(counts.max()), "least": int(counts.min())}


def measure_drafts(passing: int, temperature: float) -> dict[str, Any]:
    """Of two rows with three drafts each, of which `passing` pass: the loads of each logit of target and drafts."""
    target = make_logits("normal", 8, LARGE).view(2, 4, LARGE).contiguous()
    drafts = target[:, :3].contiguous()
    ids = target[:, :3].argmax(dim=-1)
    target[torch.arange(2)[:, None], torch.arange(passing, 3), ids[:, passing:]] = -math.inf
    found: dict[str, Any] = {}
    for name, tensor in (("target", target), ("drafts", drafts)):
        with observed_launches() as launched, counted_loads(tensor) as counts:
            out = verify_draft(target, ids, drafts, temperature=temperature, seed=3, backend="triton")
        found |= {f"{name}_most": int(counts.max()), f"{name}_least": int(counts.min()), "launches": len(launched)}
    same = verify_draft(target, ids, drafts, temperature=temperature, seed=3, backend="torch")
    assert torch.equal(out.accepted_lengths, same.accepted_lengths) and torch.equal(out.token_ids, same.token_ids)
    return {**found, "passed": out.accepted_lengths.tolist()}


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps({"case": case, **measure(*case)}), flush=True)
    for length in HISTORIES:
        print(json.dumps({"case": ("history", length), **measure_history(length)}), flush=True)
    for filters in FILTERS:
        print(json.dumps({"case": ("filters", *filters), **measure_filters(filters[0], FILTERS[filters])}), flush=True)
    for draft_case in DRAFTS:
        print(json.dumps({"case": ("drafts", *draft_case), **measure_drafts(*draft_case)}), flush=True)
