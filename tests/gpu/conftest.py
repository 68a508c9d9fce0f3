"""Tests that mean something on an NVIDIA GPU only; benchmarks/gpu_suite.sh runs them there."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
