"""Loads a generation function from a folder or a repository, which runs someone else's code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_FOLDER = "custom_generate"


def load_custom_generate(source: str, trust_remote_code: bool | None, **hub: Any) -> Callable[..., Any]:
    """The function `generate` of the file `custom_generate/generate.py` in a folder or a repository of the Hub.

    hub: arguments of `huggingface_hub.snapshot_download`, `revision` and `token` for example.

    Errors: ValueError unless `trust_remote_code` is True, before the function accesses `source`. OSError if the file is
    missing, ImportError if a package of `custom_generate/requirements.txt` is missing, AttributeError if the file does
    not define `generate`.
    """
    if trust_remote_code is not True:
        raise ValueError(
            f"`custom_generate`={source!r} runs the code it finds there; read it, and allow it with "
            f"`trust_remote_code=True`"
        )
    folder = Path(source) if Path(source).is_dir() else _download(source, hub)
    file = folder / _FOLDER / "generate.py"
    if not file.is_file():
        raise OSError(f"`custom_generate`={source!r} has no file {_FOLDER}/generate.py")
    _check_requirements(source, folder / _FOLDER / "requirements.txt")
    function: Callable[..., Any] = _import(file).generate
    return function


def _download(repo_id: str, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id, allow_patterns=f"{_FOLDER}/*", **hub))


def _check_requirements(source: str, file: Path) -> None:
    from packaging.requirements import Requirement

    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    wanted = [Requirement(line) for line in (line.partition("#")[0].strip() for line in lines) if line]
    missing = [str(requirement) for requirement in wanted if not _is_met(requirement)]
    if missing:
        raise ImportError(f"`custom_generate`={source!r} needs {', '.join(missing)}")


def _is_met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(requirement.specifier.contains(version, prereleases=True))


def _import(file: Path) -> ModuleType:
    """Runs `file` as a new module on every call. It may import its neighbours relatively."""
    package = f"pygen_{_FOLDER}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(package, file, submodule_search_locations=[str(file.parent)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[package]
        raise
    return module
