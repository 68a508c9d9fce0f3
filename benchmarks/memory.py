"""Measures the peak memory of a call, relative to the memory in use before it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import REPOSITORY

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {_STATUS}")


def peak_temporary_bytes(call: Callable[[], object]) -> int | None:
    """Returns the peak resident bytes during `call()` minus those before it; None if the system has no counter.

    The counter covers C++ and torch. In a second call, torch's profiler reports the largest single allocation, a lower
    bound that does not depend on which pages were touched.
    """
    gc.collect()
    try:
        _CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
        call()
        resident = max(0, _status_bytes("VmHWM") - before)
    except OSError:
        return None
    return max(resident, _largest_torch_allocation(call))


def in_child(module: str, name: str, *arguments: str) -> int | None:
    """Returns what `python -m module --memory-of name` prints. A new process has no memory left from other calls."""
    child = [sys.executable, "-m", module, "--memory-of", name, *arguments]
    # Return freed tensors to the system at once, so that the peak counts live memory and no fragmentation.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    done = subprocess.run(child, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.splitlines() or ["no output"])[-1])
    value = json.loads(done.stdout.splitlines()[-1])
    return None if value is None else int(value)


def _largest_torch_allocation(call: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return max((event.self_cpu_memory_usage for event in profile.events()), default=0)
