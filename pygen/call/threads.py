"""The part of a thread's state that the model's forward depends on, for a thread that runs it instead."""

from __future__ import annotations

import contextlib

import torch


def contexts_of_this_thread() -> list[contextlib.AbstractContextManager[object]]:
    """State that torch keeps per thread and that a forward depends on: autocast, and CUDA's streams and device."""
    contexts: list[contextlib.AbstractContextManager[object]] = [
        torch.autocast(device, dtype=torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]
    if torch.cuda.is_initialized():
        here = torch.cuda.current_device()
        streams = [torch.cuda.current_stream(index) for index in range(torch.cuda.device_count()) if index != here]
        # A stream makes its device current, so the current device's is the last. Default streams of others stay out:
        # torch would begin to use a device that the process may not need.
        chosen = [stream for stream in streams if stream != torch.cuda.default_stream(stream.device)]
        contexts += [torch.cuda.stream(stream) for stream in (*chosen, torch.cuda.current_stream(here))]
    return contexts
