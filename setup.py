"""Builds pygen._C by driving CMake. Sources and flags are listed in CMakeLists.txt, metadata in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str:
    # PATH comes first: under build isolation pip puts its tools there. Tools beside the interpreter then belong to an
    # environment that the isolated build cannot see.
    path = os.pathsep.join([*os.get_exec_path(), str(Path(sys.executable).parent)])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise RuntimeError(f"`{name}` not found: `pip install {name}`, or build with build isolation on")
    return tool


class CMakeBuild(build_ext):
    """Configures and builds the CMake target `_C` directly into the folder that setuptools expects."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # setuptools gives an editable build a temporary folder. A permanent one makes rebuilds incremental.
        lasting = self.inplace or self.editable_mode
        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" if lasting else Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake")
        # Pass every path of an isolated environment again, because that environment disappears after the build.
        configure = [
            cmake, "-S", str(ROOT), "-B", str(folder.resolve()), "-G", "Ninja",
            "-UPYGEN_*",  # settings of an earlier build in this folder
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPYGEN_VERSION={self.distribution.get_version()}",
            f"-DPYGEN_OUTPUT_DIR={output.parent}",
            f"-DPYGEN_INSTALL=pip install {'-e ' if lasting else ''}.",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        jobs = str(self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(folder.resolve()), "--parallel", jobs], check=True)
        if not output.exists():
            raise RuntimeError(f"CMake built no {output}")


setup(
    packages=find_packages(include=["pygen", "pygen.*"]),
    # In place of the package that points a checkout to this folder.
    package_dir={"pygen": "pygen", "pygen.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("pygen._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
