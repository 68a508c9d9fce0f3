"""A checkout that is built and on the path, but not installed, has every backend, and says why one cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = Path(torch.__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pygen", "triton_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(code: str, *path: Path) -> str:
    """Runs Python without `site`, so that no file of the environment leads to an installed pygen."""
    paths = os.pathsep.join(map(str, [*path, PACKAGES]))
    variables = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=variables, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_backend_runs(checkout: Path) -> None:
    pytest.importorskip("triton")
    code = (
        "import pygen, torch\n"
        "print(pygen.__file__)\n"
        "for backend in ('cpu', 'triton'):\n"
        "    assert pygen.available_backends()[backend] is None, pygen.available_backends()\n"
        "    print(pygen.ops.sample(torch.eye(3), do_sample=False, backend=backend).token_ids.tolist())\n"
    )
    assert run(code, checkout).split("\n") == [str(checkout / "pygen/__init__.py"), "[0, 1, 2]", "[0, 1, 2]"]


REFUSED = (
    "import pygen, torch\n"
    "assert pygen.available_backends()['cpu'] is None\n"
    "print(pygen.available_backends()['triton'])\n"
    "try:\n"
    "    pygen.ops.sample(torch.eye(3), do_sample=False, backend='triton')\n"
    "except pygen.BackendError as error:\n"
    "    assert 'triton: ' + pygen.available_backends()['triton'] + ';' in str(error), error\n"
    "    print('refused')\n"
)


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_a_triton_that_cannot_be_imported(checkout: Path, tmp_path: Path, error: str) -> None:
    (tmp_path / "triton.py").write_text(f"raise {error}('libcuda is too old')\n")
    reason = f"triton cannot be imported ({error}: libcuda is too old)"
    assert run(REFUSED, tmp_path, checkout).split("\n") == [reason, "refused"]


def test_kernels_that_are_missing(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    shutil.copytree(checkout / "pygen", tmp_path / "pygen")
    reason, refused = run(REFUSED, tmp_path).split("\n")
    module = "pygen.triton_kernels._specialization"
    assert reason == f"{module} cannot be imported (ModuleNotFoundError: No module named '{module}')"
    assert refused == "refused"
