"""Replacements for a CUDA graph on the CPU: plain calls, and the forward's kernels without its Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pygen.graph.cuda_graph import Launches
from tests.runtime.tape import Tape

Part = Callable[[], None]


class PlainCalls(Launches):
    """Runs the parts again, Python included."""

    made = 0

    def __init__(self, parts: Sequence[Part], restore: Part, pool: Any) -> None:
        type(self).made += 1
        for part in parts:
            part()
        restore()
        super().__init__(parts)

    @staticmethod
    def new_pool(device: torch.device) -> Any:
        return None


class TapedForward(PlainCalls):
    """Replays only torch's ops of the first part, the forward: values from the host stay as captured."""

    def __init__(self, parts: Sequence[Part], restore: Part, pool: Any) -> None:
        run, *rest = parts
        bound: Any = getattr(run, "func", run)
        forward = bound.__self__
        run()
        restore()
        logits = torch.empty_like(forward.logits)
        tape = Tape()
        with tape:
            run()
            logits.copy_(forward.logits)
        forward.logits = logits
        super().__init__([tape.replay, *rest], restore, pool)
