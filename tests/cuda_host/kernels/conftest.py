"""Tests of the CUDA sources: `make test-cuda-host` runs them in a process with the sanitizers."""

from __future__ import annotations

from tests.conftest import BACKENDS

collect_ignore_glob = [] if "cuda_host" in BACKENDS else ["test_*.py"]
