"""Counts, in Triton's interpreter, the launches of a `sample` call and the loads of each logit.

    TRITON_INTERPRET=1 python -m tests.helpers.triton_traffic

prints one JSON object per case of CASES: {"launches", "most", "least", "torch_ops"}.
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

from pygen.ops import prepare_sample
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


def measure(kind: str, setting: str, size: int) -> dict[str, Any]:
    from pygen.triton_kernels import _specialization
    from pygen.triton_kernels import sample as kernels

    logits = LOGITS[kind](size).contiguous()
    prepared = prepare_sample(logits, **KNOBS[setting], input_ids=make_history(2, 9, size), seed=1, backend="triton")
    launched: list[Any] = []
    _specialization.observers.append(launched.append)
    with counted_loads(logits) as counts:
        prepared(logits)
    _specialization.observers.remove(launched.append)

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


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps({"case": case, **measure(*case)}), flush=True)
