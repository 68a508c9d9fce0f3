"""Tests for an environment of torch with CUDA on a machine without a GPU; `make gpu-rehearsal` runs them."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.version.cuda and not torch.cuda.is_available() else ["test_*.py"]
