"""The build: its report, the effects of an import, and the contents of a wheel."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import pygen

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd=cwd, timeout=120
    )


def test_build_info() -> None:
    info = pygen.build_info()
    assert info["version"] == pygen.__version__ == importlib.metadata.version("pygen-decode")
    assert isinstance(info["compiler"], str) and info["compiler"]
    assert isinstance(info["openmp"], bool)
    isas = info["cpu_isas"]
    assert isinstance(isas, list) and isas[0] == "generic" and set(isas) <= {"generic", "avx2", "avx512"}
    assert info["cpu_isa"] in isas
    assert isinstance(info["cuda"], bool)  # test_cuda_choice.py has the rest
    assert isinstance(info["nvcc_version"], str)


def test_import_is_silent_and_lazy() -> None:
    code = (
        "import pygen, sys\n"
        "loaded = [name for name in ('transformers', 'triton', 'pygen._C', 'pygen.triton_kernels', 'matplotlib')"
        " if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_triton_kernels_is_a_subpackage_and_imports_no_triton() -> None:
    done = run_python(
        "import sys, pygen.triton_kernels as package\n"
        "assert package.__name__ == 'pygen.triton_kernels'\n"
        "assert 'triton' not in sys.modules and 'triton_kernels' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_cpu_isa_from_the_environment() -> None:
    for isa in pygen.build_info()["cpu_isas"]:  # type: ignore[attr-defined]
        done = run_python("import pygen; print(pygen.build_info()['cpu_isa'])", PYGEN_CPU_ISA=isa)
        # pygen refuses a set that was built but that this processor lacks, like an unknown one.
        assert done.stdout.strip() == isa or "ValueError: `PYGEN_CPU_ISA` must be one of" in done.stderr
    assert (
        run_python("import pygen; print(pygen.build_info()['cpu_isa'])", PYGEN_CPU_ISA="generic").stdout == "generic\n"
    )


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 "])
def test_impossible_cpu_isa_is_an_error_at_first_use_only(name: str) -> None:
    code = (
        "import pygen, torch\n"
        "print('imported')\n"
        "pygen.ops.sample(torch.zeros(1, 8), do_sample=False, backend='cpu')\n"
        "print('sampled')\n"
    )
    done = run_python(code, PYGEN_CPU_ISA=name)
    assert done.stdout == "imported\n"
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError: `PYGEN_CPU_ISA` must be one of ") and f'"{name}"' in message


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_in_the_process() -> None:
    done = run_python(
        "import torch, pygen\n"
        "from pygen import _C\n"
        "lines = open('/proc/self/maps').read().split('\\n')\n"
        "paths = {line.split()[-1] for line in lines if 'libgomp' in line or 'libomp' in line or 'libiomp' in line}\n"
        "assert len(paths) <= 1, paths\n"
    )
    assert done.returncode == 0, done.stderr


def test_no_torch_header_and_one_pybind11_user() -> None:
    for path in (ROOT / "csrc").rglob("*.[ch]*"):
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch/" in line or "ATen/" in line or "c10/" in line], path
        assert path.parent.name == "bindings" or not [line for line in includes if "pybind11" in line], path


def test_wheel(tmp_path: Path) -> None:
    """A wheel, built offline, holds the package and the kernels, and runs in an environment without sources."""
    for tool in ("pybind11", "setuptools"):
        pytest.importorskip(tool)
    source, environment = tmp_path / "source", tmp_path / "environment"
    source.mkdir()
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("cmake", "csrc", "pygen", "triton_kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    # The build of the checkout has the CUDA kernels and optimised code, which take minutes.
    env = {**os.environ, "CMAKE_ARGS": "-DPYGEN_WITH_CUDA=OFF -DCMAKE_BUILD_TYPE=None"}
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob("pygen_decode-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"pygen", f"pygen_decode-{pygen.__version__}.dist-info"}
    wanted = {f"pygen/{path.relative_to(ROOT / 'pygen')}" for path in (ROOT / "pygen").rglob("*.py*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    wanted |= {f"pygen/triton_kernels/{path.name}" for path in (ROOT / "triton_kernels").glob("*.py")}
    assert wanted | {"pygen/py.typed"} <= set(names)
    assert [name for name in names if name.startswith("pygen/_C.") and name.endswith(".so")]
    assert not [name for name in names if name.endswith((".cpp", ".h", ".o"))]

    venv.create(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # torch is too large to install twice. It comes after the wheel's packages on the path.
    (installed,) = (environment / "lib").glob("python*/site-packages")
    (installed / "torch.pth").write_text(str(Path(torch.__file__).parent.parent))
    code = (
        "import pygen, pygen.triton_kernels, torch\n"
        "assert pygen.ops.sample(torch.eye(3), do_sample=False, backend='cpu').token_ids.tolist() == [0, 1, 2]\n"
        "print(pygen.__file__, pygen.build_info()['version'])\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.stdout.split() == [str(installed / "pygen" / "__init__.py"), pygen.__version__], done.stderr
