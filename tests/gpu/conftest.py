"""Tests that need an NVIDIA GPU; benchmarks/gpu_suite.sh runs them."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
