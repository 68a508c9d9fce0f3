"""`release`: gives back what captured steps of a model hold."""

from __future__ import annotations

import sys
from typing import Any


def release(model: Any) -> None:
    """Frees the graphs, caches and buffers that calls of `generate` with `runtime="graph"` left for the next ones.

    They are kept outside of the model, at most four sizes of a call, and go with the model too. A call that runs
    meanwhile ends as it would have, and the next captured call makes its own anew. Nothing happens where there is
    nothing to free.
    """
    captures = sys.modules.get("pygen.graph.captures")
    if captures is not None:
        from pygen.models.wrappers import inner

        captures.drop(inner(model))
