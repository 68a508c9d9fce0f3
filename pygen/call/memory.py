"""Out-of-memory errors that name the settings which determine the size of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pygen.call.call import Call

# torch's messages for a tensor on the CPU that is too large for this machine or any other.
_MESSAGES = ("DefaultCPUAllocator", "Storage size calculation overflowed", "multiplication overflow")
_SIZES = ("num_beams", "num_return_sequences", "top_logprobs", "prompt_lookup_num_tokens", "num_assistant_tokens")


@contextmanager
def named_sizes(call: Call) -> Iterator[None]:
    """Within the block, an out-of-memory error becomes one that names settings of `call`.

    Raises MemoryError, or torch.OutOfMemoryError on a GPU.
    """
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
