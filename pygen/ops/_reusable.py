"""Reusable checked calls of the CPU kernels. They keep no tensor: every call passes those that it reads and writes."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.ops._kept_tokens import KeptRows
from pygen.ops._noise import Noise
from pygen.ops._outputs import SampleOutput, empty_output
from pygen.ops._shaping import Shaping, TokenIds
from pygen.rng import draw_seed, give_seed_back, lock_of

# input_ids, bias, suppress and token_bitmask of a call. `suppress` is a tensor unless the plan holds the ids itself.
Tables = tuple[Tensor | None, Tensor | None, TokenIds | None, Tensor | None]


class ReusableSample:
    """A reusable call of `sample`. Threads may share it."""

    __slots__ = ("_kept_width", "_num_logprobs", "_rng", "_rows", "_run", "_suppress")

    def __init__(self, arguments: dict[str, float], noise: Noise, num_logprobs: int, suppress: Tensor | None) -> None:
        """arguments: those of pygen._C.SamplePlan. suppress: the ids, unless they are a tensor of the caller's."""
        from pygen import _C

        self._run = _C.SamplePlan(**{**arguments, **_NO_TABLES, **_NO_TENSORS}).run_with
        self._rng = noise.rng if noise.draws else None
        self._rows = len(noise.seeds)
        self._num_logprobs = num_logprobs
        self._kept_width = int(arguments["kept_limit"])
        self._suppress = suppress

    def __call__(
        self,
        logits: Tensor,
        step: int | Tensor,
        tables: Tables,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> SampleOutput:
        input_ids, bias, suppress, token_bitmask = tables
        input_ids = _int64_of(input_ids)
        banned = _int64_of(suppress) if self._suppress is None else self._suppress  # type: ignore[arg-type]
        out = empty_output(self._rows, self._num_logprobs, logits.device, self._kept_width)
        run, inputs = (
            self._run,
            (logits.data_ptr(), logits.stride()[0], *_step_arguments(step), torch.get_num_threads()),
        )
        addresses = (_table_arguments(input_ids, bias, banned, token_bitmask), _pointers(out))
        if self._rng is None or seed is not None:
            run(*inputs, 0, seed or 0, *addresses)
            return out
        source = torch.default_generator if generator is None else generator
        if self._rng == "philox":
            before = source.get_state()
            try:
                run(*inputs, 0, draw_seed(source), *addresses)
            except BaseException:
                give_seed_back(source, before)
                raise
        else:
            with lock_of(source):
                generator_state = source.get_state()
                run(*inputs, generator_state.data_ptr(), None, *addresses)
                source.set_state(generator_state)
        return out


_OUTPUTS = (
    "token_ids_ptr",
    "status_ptr",
    "logprobs_ptr",
    "top_ids_ptr",
    "top_logprobs_ptr",
    "kept_ids_ptr",
    "kept_counts_ptr",
    "log_mass_ptr",
)
_NO_TENSORS = dict.fromkeys(("seeds_ptr", "steps_ptr", *_OUTPUTS), 0)


def _step_arguments(step: int | Tensor) -> tuple[int, int]:
    return (0, step.data_ptr()) if isinstance(step, Tensor) else (step, 0)


def _pointers(out: SampleOutput) -> tuple[int, ...]:
    """Returns the addresses of `_OUTPUTS`."""
    top = out.logprobs, *(out.top_logprobs or (None, None))
    kept = out.kept if isinstance(out.kept, KeptRows) else (None, None, None)
    tensors = out.token_ids, out.status, *top, *kept
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])


class ReusableScores:
    """A reusable call of `process_logits`. Threads may share it."""

    __slots__ = ("_run", "_suppress")

    def __init__(self, shaping: Shaping, suppress: Tensor | None) -> None:
        """suppress: the ids, unless they are a tensor of the caller's."""
        from pygen import _C

        self._run = _C.ProcessPlan(**{**shaping.kernel_arguments(threads=1), **_NO_TABLES}).run_with
        self._suppress = suppress

    def __call__(self, logits: Tensor, tables: Tables) -> Tensor:
        input_ids, bias, suppress, token_bitmask = tables
        input_ids = _int64_of(input_ids)
        banned = _int64_of(suppress) if self._suppress is None else self._suppress  # type: ignore[arg-type]
        out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        tables_at = _table_arguments(input_ids, bias, banned, token_bitmask)
        threads, width = torch.get_num_threads(), logits.shape[1]
        self._run(logits.data_ptr(), logits.stride()[0], threads, tables_at, out.data_ptr(), width)
        return out


def _table_arguments(
    input_ids: Tensor | None, bias: Tensor | None, suppress: Tensor | None, token_bitmask: Tensor | None
) -> tuple[int, ...] | None:
    """Returns the tables of a call as the reusable plans of pygen._C take them."""
    if input_ids is None and bias is None and suppress is None and token_bitmask is None:
        return None
    return (
        *_place(input_ids),
        0 if input_ids is None else input_ids.shape[1],
        *_place(bias),
        *_place(suppress),
        0 if suppress is None else suppress.shape[-1],
        *_place(token_bitmask),
    )


# A reusable plan has no tables, because every call passes its own.
_NO_TABLES = dict.fromkeys(
    (
        "input_ids_ptr",
        "input_ids_stride",
        "input_ids_length",
        "bias_ptr",
        "bias_stride",
        "suppress_ptr",
        "suppress_stride",
        "suppress_count",
        "token_bitmask_ptr",
        "token_bitmask_stride",
    ),
    0,
)


def _int64_of(ids: Tensor | None) -> Tensor | None:
    return ids if ids is None or ids.dtype is torch.int64 else ids.long()


def _place(table: Tensor | None) -> tuple[int, int]:
    """Returns pointer and stride; a table for all rows has stride 0."""
    if table is None or table.numel() == 0:
        return 0, 0
    return table.data_ptr(), 0 if table.dim() == 1 or table.shape[0] == 1 else table.stride(0)
