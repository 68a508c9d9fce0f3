"""Want of memory in a call, with the settings that chose how much it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pygen.call.call import Call

# What torch says where a tensor on the CPU is too large for the machine, or for any.
_MESSAGES = ("DefaultCPUAllocator", "Storage size calculation overflowed", "multiplication overflow")
_SIZES = ("num_beams", "num_return_sequences", "top_logprobs", "prompt_lookup_num_tokens", "num_assistant_tokens")


@contextmanager
def named_sizes(call: Call) -> Iterator[None]:
    """MemoryError that names settings of `call`, for want of memory within; on a GPU torch.OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(text in str(error) for text in _MESSAGES)):
            raise
        kind = torch.OutOfMemoryError if on_gpu else MemoryError
        raise kind(f"not enough memory for {_sizes(call)}: {error}") from error


def _sizes(call: Call) -> str:
    named = [f"`{name}`={getattr(call.config, name)}" for name in _SIZES if not call.settings.is_default(name)]
    batch_size, length = call.prompt.input_ids.shape
    return ", ".join(
        [*named, f"`max_new_tokens`={call.lengths.max_new_tokens}", f"{batch_size} prompts of {length} ids"]
    )
