"""The extension built beforehand: what its hash covers, and that it serves only where it fits."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import prebuilt
from pygen import _C

CAPABILITY = "90"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small copy of what a build reads. Its setup.py records a build instead of running one."""
    root = tmp_path / "checkout"
    for name in ("CMakeLists.txt", "pyproject.toml", "cmake/tool.py", "csrc/cuda/sample.cu", "csrc/common/a.h"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "setup.py").write_text(
        "import os, sys\nopen('built', 'w').write(f'{sys.argv[1:]} {os.environ[\"PYGEN_CUDA_ARCHS\"]}')\n"
    )
    (root / "pygen").mkdir()
    (root / "pygen/__init__.py").write_text('"""Text."""\n__version__ = "1.0"\n')
    return root


@pytest.fixture
def folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `build` leaves it, with the extension that this process uses. It may lack CUDA kernels."""
    monkeypatch.delenv("PYGEN_CUDA_ARCHS", raising=False)
    if not _C.build_info()["cuda"]:
        monkeypatch.setattr(prebuilt, "_cannot_load", lambda extension: None)
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    extension = folder / prebuilt.extension_name()
    shutil.copy(_C.__file__, extension)
    manifest = {
        "sources": prebuilt.source_hash(checkout),
        "capability": CAPABILITY,
        "extension": prebuilt._digest(extension),
    }
    (folder / prebuilt.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_the_hash_covers_names_contents_and_version(checkout: Path) -> None:
    hashes = [prebuilt.source_hash(checkout)]
    for change in (
        lambda: (checkout / "csrc/cuda/sample.cu").write_text("other"),
        lambda: (checkout / "csrc/cuda/sample.cu").rename(checkout / "csrc/cuda/beam.cu"),
        lambda: (checkout / "csrc/new.h").write_text(""),
        lambda: (checkout / "cmake/tool.py").write_text("other"),
        lambda: (checkout / "CMakeLists.txt").write_text("other"),
        lambda: (checkout / "pygen/__init__.py").write_text('__version__ = "1.1"\n'),
    ):
        change()
        hashes.append(prebuilt.source_hash(checkout))
    assert len({*hashes}) == len(hashes)


def test_the_hash_ignores_what_no_build_reads(checkout: Path) -> None:
    before = prebuilt.source_hash(checkout)
    (checkout / "cmake/__pycache__").mkdir()
    (checkout / "cmake/__pycache__/tool.pyc").write_bytes(b"x")
    (checkout / "pygen/ops.py").write_text("x = 1\n")
    (checkout / "pygen/__init__.py").write_text('"""Other text."""\n__version__ = "1.0"\n')
    assert prebuilt.source_hash(checkout) == before


def test_used_where_it_fits(checkout: Path, folder: Path) -> None:
    assert prebuilt.install(CAPABILITY, folder, checkout) is None
    assert (checkout / "pygen" / prebuilt.extension_name()).read_bytes() == Path(_C.__file__).read_bytes()
    assert not (checkout / "built").exists()


def _other_sources(checkout: Path, folder: Path) -> None:
    (checkout / "csrc/common/a.h").write_text("changed")


def _other_python(checkout: Path, folder: Path) -> None:
    (folder / prebuilt.extension_name()).rename(folder / "_C.cpython-39-x86_64-linux-gnu.so")


def _other_gpu(checkout: Path, folder: Path) -> None:
    manifest = json.loads((folder / prebuilt.MANIFEST).read_text())
    (folder / prebuilt.MANIFEST).write_text(json.dumps({**manifest, "capability": "80"}))


def _damaged(checkout: Path, folder: Path) -> None:
    with open(folder / prebuilt.extension_name(), "ab") as file:
        file.write(b"x")


def _nothing_there(checkout: Path, folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_sources, "its sources differ"),
        (_other_python, "the folder has _C.cpython-39"),
        (_other_gpu, "compute capability 80, and the GPU has 90"),
        (_damaged, "its file is damaged"),
        (_nothing_there, "there is no prebuilt.json"),
    ],
)
def test_built_where_it_does_not_fit(
    checkout: Path, folder: Path, change: object, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(change)
    change(checkout, folder)
    assert reason in (prebuilt.install(CAPABILITY, folder, checkout) or "")
    assert reason in capfd.readouterr().out
    assert (checkout / "built").read_text() == "['build_ext', '--inplace'] 90"
    assert not list((checkout / "pygen").glob("_C*"))


def test_an_extension_that_cannot_be_loaded_does_not_fit(tmp_path: Path) -> None:
    extension = tmp_path / prebuilt.extension_name()
    extension.write_bytes(b"no library")
    assert "it cannot be loaded" in (prebuilt._cannot_load(extension) or "")
    expected = None if _C.build_info()["cuda"] else "it cannot be loaded"
    assert (prebuilt._cannot_load(Path(_C.__file__)) or "").startswith(expected or "")


def test_the_hash_of_this_checkout_repeats() -> None:
    assert prebuilt.source_hash() == prebuilt.source_hash()
    assert sys.implementation.cache_tag.removeprefix("cpython-") in prebuilt.extension_name()
