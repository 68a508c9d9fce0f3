"""An op has one file stem in every folder, and its function has the same parameters everywhere."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pygen import ops
from pygen.backends import BACKENDS
from pygen.knobs import KNOBS, NEUTRAL

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "pygen/ops": "{}.py",
    "pygen/reference": "{}.py",
    "csrc/cpu": "{}.cpp",
    "csrc/cuda": "{}.cu",
    "triton_kernels": "{}.py",
    "tests/ops": "test_{}.py",
    "benchmarks": "bench_{}.py",
}
# `beam_finalize` runs once per generation. The others get other tensors at every step: a growing cache allocates new
# ones, and the number of drafts changes.
WITHOUT_PREPARED_FORM = {"reorder_cache", "beam_finalize", "token_logprobs", "verify_draft"}
# Parameters for how a call runs, not for what it computes.
CALL_ONLY = {"backend", "out", "state"}
# Parameters of the reference for values that a captured step keeps in device memory.
DEVICE_ONLY = {"normalisers", "span"}


def stems_of_ops() -> list[str]:
    return sorted(path.stem for path in (ROOT / "pygen/ops").glob("[!_]*.py"))


def module(package: str, stem: str) -> ModuleType:
    return importlib.import_module(f"pygen.{package}.{stem}")


def parameters(function: Any) -> dict[str, tuple[Any, Any]]:
    """Kind and default of every parameter by name, with the knobs of the table in the place of `**knobs`."""
    result: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            assert parameter.annotation == "Unpack[ShapingKnobs]"
            defaults = {knob.name: None if knob.is_optional else knob.neutral for knob in KNOBS}
            result |= {knob: (parameter.KEYWORD_ONLY, default) for knob, default in defaults.items()}
        else:
            result[name] = (parameter.kind, parameter.default)
    return result


@pytest.mark.parametrize("stem", stems_of_ops())
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_op_has_its_file_in_every_folder(folder: str, stem: str) -> None:
    assert (ROOT / folder / FOLDERS[folder].format(stem)).is_file()


def test_the_reference_holds_ops_only() -> None:
    assert sorted(path.stem for path in (ROOT / "pygen/reference").glob("[!_]*.py")) == stems_of_ops()


@pytest.mark.parametrize("stem", stems_of_ops())
def test_the_reference_has_the_parameters_of_the_op(stem: str) -> None:
    public, reference = (
        {
            name: parameter
            for name, parameter in parameters(getattr(module(package, stem), stem)).items()
            if name not in CALL_ONLY | DEVICE_ONLY
        }
        for package in ("ops", "reference")
    )
    assert public == reference
    # The reference takes the knobs last.
    assert [name for name in public if name not in NEUTRAL] == [name for name in reference if name not in NEUTRAL]


@pytest.mark.parametrize("stem", sorted({*stems_of_ops()} - WITHOUT_PREPARED_FORM))
def test_the_prepared_form_has_the_parameters_of_the_op(stem: str) -> None:
    public = parameters(getattr(module("ops", stem), stem))
    prepared = parameters(getattr(module("ops", stem), f"prepare_{stem}"))
    # Each call may pass the step instead.
    assert {*prepared, "step"} == {*public, "state", "step"}
    assert all(prepared[name] == public[name] for name in public if name not in ("step", "state"))


@pytest.mark.parametrize("stem", ["process_logits", "sample", "beam_step"])
def test_a_written_out_signature_is_that_of_what_runs(stem: str) -> None:
    op = getattr(ops, stem)
    written = {name: default for name, (kind, default) in parameters(op).items() if kind.name == "KEYWORD_ONLY"}
    assert op.__kwdefaults__ == {name: default for name, default in written.items() if name not in NEUTRAL}


@pytest.mark.parametrize("stem", stems_of_ops())
def test_every_op_is_public_and_documented(stem: str) -> None:
    for name in (stem,) if stem in WITHOUT_PREPARED_FORM else (stem, f"prepare_{stem}"):
        assert name in ops.__all__
        assert inspect.getdoc(getattr(ops, name))
    text = inspect.getdoc(getattr(ops, stem)) or ""
    for name in inspect.signature(getattr(ops, stem)).parameters:
        assert name in text or name in (inspect.getdoc(ops.process_logits) or ""), name


@pytest.mark.parametrize("stem", stems_of_ops())
def test_the_table_of_an_op_names_its_backends(stem: str) -> None:
    assert {*BACKENDS} <= set(module("ops", stem)._dispatch.entries)


def test_kernels_include_no_torch_header() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            text = path.read_text()
            assert "<torch/" not in text and "<ATen/" not in text and "<c10/" not in text, path
            assert ("pybind11/" not in text) or path.parent.name == "bindings", path


def test_importing_the_ops_is_quiet_and_loads_no_kernel() -> None:
    script = "import sys, pygen.ops; print(*[m for m in ('triton', 'transformers', 'pygen._C') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
