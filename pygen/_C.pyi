"""The compiled kernels. Private: pointers are not checked. Integers throughout; strides count elements."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, Any]: ...
def cuda_capability(ordinal: int, /) -> tuple[int, int]: ...
def knobs() -> list[tuple[str, str, float]]: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...

class SamplePlan:
    def __init__(self, **kwargs: float) -> None: ...
    def run(self, logits_ptr: int, logits_stride: int, step: int, length: int, generator_state_ptr: int, /) -> None: ...
    def run_with(
        self,
        logits_ptr: int,
        logits_stride: int,
        step: int,
        steps_ptr: int,
        threads: int,
        generator_state_ptr: int,
        seed: int | None,
        tables: tuple[int, ...] | None,
        outputs: tuple[int, ...],
        /,
    ) -> None: ...

class BeamPlan:
    def __init__(self, **kwargs: float) -> None: ...
    def run(
        self,
        logits_ptr: int,
        logits_stride: int,
        step: int,
        length: int,
        generator_state_ptr: int,
        halves: int,
        /,
    ) -> None: ...

class ProcessPlan:
    def __init__(self, **kwargs: float) -> None: ...
    def run(
        self, logits_ptr: int, logits_stride: int, step: int, length: int, out_ptr: int, out_stride: int, /
    ) -> None: ...
    def run_with(
        self,
        logits_ptr: int,
        logits_stride: int,
        threads: int,
        tables: tuple[int, ...] | None,
        out_ptr: int,
        out_stride: int,
        /,
    ) -> None: ...

def reorder_cache(
    layouts: Sequence[tuple[int, ...]],
    rows: int,
    beam_idx_ptr: int,
    start: int,
    starts_ptr: int,
    span_ptr: int,
    length: int,
    threads: int,
    /,
) -> None: ...
def beam_finalize(threads: int, /, **kwargs: int) -> None: ...
def token_logprobs(threads: int, /, **kwargs: int) -> None: ...
def verify_draft(threads: int, /, **kwargs: float) -> None: ...
