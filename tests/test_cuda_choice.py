"""For which GPUs a build has CUDA kernels, and what pygen says where it has none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pygen import _C, backends

ROOT = Path(__file__).resolve().parent.parent
BUILD_ALL = "To build them for all GPUs: PYGEN_CUDA_ARCHS=all pip install ."
INSTALL_NVCC = "Install the CUDA toolkit 12.8 or newer (CUDACXX names its nvcc), then: pip install ."
# A driver whose GPUs have the compute capabilities in $GPUS, each of three digits: "090120".
DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return getenv("GPUS") ? 0 : 100; }
int cuDeviceGetCount(int* count) { *count = strlen(getenv("GPUS")) / 3; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const char* digits = getenv("GPUS") + 3 * device;
  *value = attribute == 75 ? 10 * (digits[0] - '0') + digits[1] - '0' : digits[2] - '0';
  return attribute != 75 && attribute != 76;
}
"""
NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  --list-gpu-arch) printf 'compute_%s\\n' 75 80 86 90 100 120 ;;
esac
"""


def tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
    assert path is not None, f"no {name}"
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a library in the place of NVIDIA's driver."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = [tool("g++"), "-x", "c", "-shared", "-fPIC", str(folder / "driver.c"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return str(folder)


def choose(folder: Path, nvcc: str | None = "13.0", **environment: str) -> tuple[str, str]:
    """Returns the targets that cmake/cuda.cmake chooses, and their names or the reason why there are none."""
    compiler = folder / "nvcc"
    compiler.write_text(NVCC.format(version=nvcc))
    compiler.chmod(0o755)
    script = folder / "choose.cmake"
    script.write_text(
        f'set(CMAKE_CURRENT_SOURCE_DIR "{ROOT}")\n'
        f'set(Python_EXECUTABLE "{sys.executable}")\n'
        f'set(PYGEN_NVCC "{compiler if nvcc else ""}")\n'
        f'include("{ROOT}/cmake/cuda.cmake")\n'
        f'file(WRITE "{folder}/chosen" "${{CMAKE_CUDA_ARCHITECTURES}}|${{PYGEN_CUDA_NAMES}}${{PYGEN_CUDA_REASON}}")\n'
    )
    variables = {name: value for name, value in os.environ.items() if name not in ("PYGEN_CUDA_ARCHS", "GPUS")}
    done = subprocess.run(
        [tool("cmake"), "-P", str(script)], capture_output=True, text=True, env={**variables, **environment}
    )
    assert done.returncode == 0, " ".join(done.stderr.split())
    targets, _, text = (folder / "chosen").read_text().partition("|")
    return targets, text


@pytest.mark.parametrize(
    "gpus, targets, text",
    [
        ("090", "90-real", "sm_90"),
        ("090090", "90-real", "sm_90"),
        ("080120", "80-real;120-real", "sm_80,sm_120"),
        ("075086", "86-real", "sm_86"),
        # Newer than this nvcc: PTX, which the driver compiles.
        ("121", "120-virtual", "compute_120"),
        ("103", "100-virtual", "compute_100"),
        ("075", "", f"the GPU of the build has compute capability 75, and they need 80. {BUILD_ALL}"),
        (None, "", f"no GPU was found when this was built. {BUILD_ALL}"),
    ],
)
def test_without_a_choice_the_kernels_are_for_the_gpus_of_the_machine(
    driver: str, tmp_path: Path, gpus: str | None, targets: str, text: str
) -> None:
    machine = {"LD_LIBRARY_PATH": driver, **({} if gpus is None else {"GPUS": gpus})}
    assert choose(tmp_path, **machine) == (targets, text)
    assert choose(tmp_path, PYGEN_CUDA_ARCHS="native", **machine) == (targets, text)


@pytest.mark.parametrize(
    "archs, nvcc, targets, text",
    [
        ("all", "13.0", "80-real;90-real;100-real;120", "sm_80,sm_90,sm_100,sm_120,compute_120"),
        ("80,90-real", "12.8", "80;90-real", "sm_80,compute_80,sm_90"),
        ("90a", "13.0", "90a", "sm_90a,compute_90a"),
        ("none", "13.0", "", f"PYGEN_CUDA_ARCHS was none when this was built. {BUILD_ALL}"),
        ("all", "12.6", "", f"nvcc 12.6 was found when this was built. {INSTALL_NVCC}"),
        ("90", None, "", f"no nvcc was found when this was built. {INSTALL_NVCC}"),
    ],
)
def test_pygen_cuda_archs_chooses(tmp_path: Path, archs: str, nvcc: str | None, targets: str, text: str) -> None:
    assert choose(tmp_path, nvcc, PYGEN_CUDA_ARCHS=archs) == (targets, text)


@pytest.mark.parametrize("archs", ["hopper", "sm_90", "90;all", "90,"])
def test_impossible_pygen_cuda_archs(tmp_path: Path, archs: str) -> None:
    with pytest.raises(AssertionError, match=f"`PYGEN_CUDA_ARCHS` must be native, all, none or .*, got {archs}"):
        choose(tmp_path, PYGEN_CUDA_ARCHS=archs)


def test_the_driver_and_torch_name_the_same_gpus() -> None:
    printed = subprocess.run([sys.executable, ROOT / "cmake/gpus.py"], capture_output=True, text=True, check=True)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert printed.stdout.split() == ["{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)]


@pytest.mark.parametrize(
    "target, built, given, archs",
    [
        ("demo", None, "", "native"),
        ("build", None, "80,90", "80,90"),
        ("test", None, "", "all"),
        ("environments", None, "", "all"),
        ("test", "native", "", "all"),
        ("test", "90", "90", None),
        ("lint", "90", "", None),
        ("demo", "all", "", None),
        ("test", "all", "", None),
        ("build", "all", "native", "native"),
    ],
)
def test_make_builds_the_kernels_that_a_target_needs(
    tmp_path: Path, target: str, built: str | None, given: str, archs: str | None
) -> None:
    """`make demo` builds for this machine, `make test` for all GPUs, and neither again what there is."""
    for name in ("Makefile", "constraints.txt", "constraints-docs.txt", "constraints-gpu.txt", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("setup.py", "pyproject.toml", "csrc/sample.cpp", "cmake/cuda.cmake", ".venv/started"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if built is not None:
        (tmp_path / ".venv" / f".built-{built}").touch()
    done = subprocess.run(
        [tool("make"), "-n", target, f"PYGEN_CUDA_ARCHS={given}", "VENV=.venv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    builds = [line for line in done.stdout.splitlines() if ' -e ".[dev]"' in line]
    assert [line.split()[0] for line in builds] == ([] if archs is None else [f"PYGEN_CUDA_ARCHS={archs}"])


def test_the_build_says_what_it_has() -> None:
    build = _C.build_info()
    archs = build["cuda_archs"]
    assert all(arch.partition("_")[0] in ("sm", "compute") for arch in archs)
    assert bool(archs) == build["cuda"] == (build["cuda_reason"] == "")
    if not build["cuda"]:
        assert "pip install" in build["cuda_reason"]
        assert backends.available_backends()["cuda"] == f"built without CUDA kernels: {build['cuda_reason']}"


@pytest.mark.parametrize(
    "archs, runs, does_not",
    [
        (["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"], [(8, 0), (8, 9), (10, 3), (12, 1)], [(7, 5), (11, 0)]),
        (["sm_90"], [(9, 0)], [(8, 9), (10, 0)]),
        (["sm_86"], [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (["compute_80"], [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        (["sm_90a", "compute_90a"], [(9, 0)], [(10, 0)]),
        (["sm_100f"], [(10, 0), (10, 3)], [(12, 0)]),
    ],
)  # fmt: skip
def test_a_gpu_without_code_in_the_build_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, archs: list[str], runs: list[tuple[int, int]], does_not: list[tuple[int, int]]
) -> None:
    gpus = [*runs, *does_not]
    monkeypatch.setattr(_C, "build_info", lambda: {"cuda": True, "cuda_archs": archs})
    monkeypatch.setattr(_C, "cuda_capability", gpus.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    try:
        backends._target_reason.cache_clear()
        assert backends.available_backends()["cuda"] is None, "some GPU has kernels"
        table = backends.Dispatcher("op", cuda="kernel")
        for index, (major, minor) in enumerate(gpus):
            reason = table.reasons(torch.device("cuda", index))["cuda"]
            if (major, minor) in runs:
                assert reason is None
            else:
                assert reason == (
                    f"the CUDA kernels were built for {', '.join(archs)}, and cuda:{index} has compute capability "
                    f"{major}.{minor}: build again with PYGEN_CUDA_ARCHS={major}{minor} or all"
                )
    finally:
        backends._target_reason.cache_clear()
