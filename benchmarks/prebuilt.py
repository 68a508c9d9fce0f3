"""The compiled extension for a machine with a GPU, built beforehand on one without.

python -m benchmarks.prebuilt build      builds it into build/gpu-prebuilt; `make gpu-prebuilt` does so for CPython 3.12
python -m benchmarks.prebuilt install    copies it into the package if it fits this checkout and machine, else builds

`build` takes --capability, that of the GPU; `install` asks the GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu-prebuilt"
# All that a build reads, but for the version, which is one line of the package.
SOURCES = ("CMakeLists.txt", "setup.py", "pyproject.toml", "cmake", "csrc")
MANIFEST = "prebuilt.json"


def source_hash(root: Path = ROOT) -> str:
    """Returns the SHA-256 of the names and contents of all files that a build of the extension reads."""
    digest = hashlib.sha256()
    files = [path for name in SOURCES for path in (root / name, *(root / name).rglob("*"))]
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    version = re.search(r"^__version__ = .*$", (root / "pygen/__init__.py").read_text(), re.MULTILINE)
    digest.update(version[0].encode() if version else b"")
    return digest.hexdigest()


def extension_name() -> str:
    """Returns the file name of the extension, which holds the Python and the platform."""
    return f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(capability: str, folder: Path = FOLDER) -> None:
    """Builds, strips and describes the extension with machine code for `capability`, such as "90", only."""
    work = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{capability}"
    before = source_hash()
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            f"--build-lib={work / 'lib'}",
            f"--build-temp={work}",
        ],
        cwd=ROOT,
        env={**os.environ, "CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} -DPYGEN_CUDA_ARCHS={capability}-real"},
        check=True,
    )
    if source_hash() != before:
        raise SystemExit("a source changed during the build: build again")
    folder.mkdir(parents=True, exist_ok=True)
    extension = folder / extension_name()
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.copy(work / "lib" / "pygen" / extension.name, extension)
    subprocess.run(["strip", "--strip-unneeded", str(extension)], check=True)
    reason = _cannot_load(extension)
    if reason:
        raise SystemExit(f"the build cannot be used: {reason}")
    manifest = {"sources": before, "capability": capability, "extension": _digest(extension)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def misfit(capability: str | None, folder: Path = FOLDER, root: Path = ROOT) -> str | None:
    """Returns why the extension in `folder` cannot serve this checkout, Python and GPU, or None if it can.

    capability: of the GPU, such as "90"; None, without a GPU, takes any.
    """
    extension = folder / extension_name()
    if not (folder / MANIFEST).exists():
        return f"there is no {MANIFEST} in {folder}"
    manifest = json.loads((folder / MANIFEST).read_text())
    if not extension.exists():
        found = ", ".join(sorted(path.name for path in folder.glob("_C*"))) or "none"
        return f"this Python needs {extension.name}, and the folder has {found}"
    if manifest["sources"] != source_hash(root):
        return "its sources differ from those of this checkout"
    if capability not in (None, manifest["capability"]):
        return f"it has code for compute capability {manifest['capability']}, and the GPU has {capability}"
    if manifest["extension"] != _digest(extension):
        return "its file is damaged"
    return _cannot_load(extension)


def install(capability: str | None, folder: Path = FOLDER, root: Path = ROOT) -> str | None:
    """Puts an extension into the package: the one in `folder`, or where that misfits, a new build.

    Returns why it built, or None where it copied.
    """
    reason = misfit(capability, folder, root)
    if reason is None:
        # A rename, so that no process sees half a file.
        new = root / "pygen" / f"{extension_name()}.new"
        shutil.copy(folder / extension_name(), new)
        new.replace(root / "pygen" / extension_name())
    else:
        print(f"building, because of the extension built beforehand: {reason}", flush=True)
        variables = {} if capability is None else {"PYGEN_CUDA_ARCHS": os.environ.get("PYGEN_CUDA_ARCHS") or capability}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=root, env={**os.environ, **variables}, check=True)
    return reason


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _cannot_load(extension: Path) -> str | None:
    """Returns why a process cannot import the extension with its CUDA kernels. Loading it here would keep its file."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('pygen._C', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "info = module.build_info()\n"
        "sys.exit(None if info['cuda'] else info['cuda_reason'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(extension)], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"it cannot be loaded: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"


def _capability_here() -> str | None:
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds or installs an extension built beforehand.")
    parser.add_argument("action", choices=("build", "install"))
    parser.add_argument("--capability", help="for build; default 90")
    args = parser.parse_args(arguments)
    if args.action == "build":
        capability = args.capability or "90"
        reason = misfit(capability)
        if reason is not None:
            build(capability)
        size = (FOLDER / extension_name()).stat().st_size / 2**20
        state = "built" if reason else "up to date"
        print(f"{FOLDER / extension_name()}: {state}, compute capability {capability}, {size:.1f} MiB")
        return 0
    capability = args.capability or _capability_here()
    print("built" if install(capability) else f"used {FOLDER / extension_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
