"""pygen: compiled kernels for autoregressive decoding behind the Hugging Face `generate()` API."""

from __future__ import annotations

# Before pygen._C in every process: the extension takes its OpenMP runtime from the one torch has loaded.
import torch as _torch  # noqa: F401

from pygen._build import build_info

__version__ = "0.1.0"

__all__ = ["__version__", "build_info"]
