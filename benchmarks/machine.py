"""Describes the measuring machine: the machine block, the device's slug, the commit, the cache size.

python -m benchmarks.machine     prints the block
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE_FALLBACK_BYTES = 64 << 20


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@functools.cache
def commit() -> str:
    """Returns the short commit, with `+` if tracked files differ from it. Result files do not count.

    In a copy without git it is PYGEN_COMMIT, if that is set.
    """
    head = _output("git", "rev-parse", "--short=10", "HEAD") or os.environ.get("PYGEN_COMMIT", "")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (head or "none") + ("+" if changed else "")


@functools.cache
def today() -> str:
    return datetime.date.today().isoformat()


@functools.cache
def load_before() -> str:
    """Returns the system's load at the first call, so call it before measuring."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def cpu_model() -> str:
    """Returns the processor's name, plus family and model, because virtual machines may shorten the name."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "model" in fields and not re.search(r"\d", name):
        name += f" family {fields.get('cpu family', '?')} model {fields['model']}"
    return name


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def device_slug(device: torch.device) -> str:
    name = re.sub(r"\((r|tm)\)", " ", device_name(device).lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def cache_bytes(device: torch.device) -> int:
    """Returns the size of the last-level cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_bytes_of(path.read_text()) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=CACHE_FALLBACK_BYTES)


def _bytes_of(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    if match is None:
        return 0
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _build() -> dict[str, str]:
    try:
        import pygen
        from pygen import _C
    except ImportError as error:
        return {"pygen": f"cannot be imported: {error}"}
    info = _C.build_info()
    return {
        "pygen": str(getattr(pygen, "__version__", info.get("version", "?"))),
        "compiler": str(info.get("compiler", "?")),
        "isa": _C.cpu_isa(),
    }


def machine_block(device: torch.device) -> dict[str, str]:
    """Returns what a reader needs to compare two result files, as printable pairs."""
    block = {
        "device": device_name(device),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cache": f"{cache_bytes(device) >> 20} MiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        **_build(),
        "load before": load_before(),
        "commit": commit(),
        "date": today(),
    }
    if torch.cuda.is_available():
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
        block["gpu"] = torch.cuda.get_device_name()
        block["driver"] = driver[0] if driver else "?"
        block["cuda"] = str(torch.version.cuda)
        block["capability"] = "{}{}".format(*torch.cuda.get_device_capability())
    return block


def main() -> None:
    """Prints the machine block of this machine's GPU, or CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for key, value in machine_block(device).items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
