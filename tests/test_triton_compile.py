"""Compiles every form of the Triton kernels ahead of time: each fits its GPUs, and no other form is launched."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pygen.triton_kernels import _specialization
from pygen.triton_kernels._specialization import Specialization, launch, signature_of

from tests.helpers import triton_compile, triton_launches
from tests.helpers.processes import has_ended
from tests.helpers.triton_compile import SHARED_LIMITS, Usage, ops
from tests.helpers.triton_launches import only_listed_launches

MOST_REGISTERS = 255
# The first test that asks for the usage of the forms compiles them all: minutes on two idle cores, over an hour on busy
# ones.
compiles_all = pytest.mark.timeout(7200)
ROOT = Path(__file__).resolve().parent.parent


def run_compiled(folder: Path, *arguments: str) -> str:
    """Runs Python with Triton's compiler instead of its interpreter, and with a separate cache."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # Compiling takes less time, and the same registers.
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment, "TRITON_CACHE_DIR": str(folder / "triton")},
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate()
        except BaseException:
            # The timeout of a test, or an interrupt: the workers of that process end, too.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="session")
def usages(tmp_path_factory: pytest.TempPathFactory) -> list[Usage]:
    """Returns the usage of every form; the processes of `pytest -n` share one compilation."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    result = folder / "usages.json"
    with open(folder / "usages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            print(run_compiled(folder, "-m", "tests.helpers.triton_compile", "--json", str(result)))
    return [Usage(*values) for values in json.loads(result.read_text())]


@compiles_all
@pytest.mark.parametrize("arch", SHARED_LIMITS)
@pytest.mark.parametrize("op", ops())
def test_ahead_of_time(usages: list[Usage], op: str, arch: int) -> None:
    of_op = [usage for usage in usages if (usage.op, usage.arch) == (op, arch)]
    assert of_op
    for usage in of_op:
        assert not usage.error, f"{usage.name}: {usage.error}"
        assert usage.stack == 0, f"{usage.name} spills {usage.stack} bytes"
        assert usage.shared <= SHARED_LIMITS[arch], f"{usage.name} takes {usage.shared} bytes of shared memory"
        assert 0 < usage.registers <= MOST_REGISTERS, f"{usage.name} takes {usage.registers} registers"


# The two launches of an op, by the first word of the names of their forms.
PAIRS = [
    ("sample", "scan", "sample", "rows"),
    ("sample", "scan", "process_logits", "filter"),
    ("beam_step", "beams", "beam_step", "prompts"),
    ("verify_draft", "facts", "verify_draft", "rows"),
]


@compiles_all
@pytest.mark.parametrize("arch", SHARED_LIMITS)
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_the_second_launch_starts_early_and_waits(usages: list[Usage], pair: tuple[str, ...], arch: int) -> None:
    """From compute capability 9.0 on. Every program waits, because the launch after theirs relies on it."""
    first, second = (
        [usage for usage in usages if (usage.op, usage.arch) == (op, arch) and usage.name.split()[0] == form]
        for op, form in (pair[:2], pair[2:])
    )
    assert first and {(usage.releases, usage.waits) for usage in first} == {(int(arch >= 90), 0)}
    assert second and {(usage.releases, usage.waits) for usage in second} == {(0, int(arch >= 90))}


@pytest.mark.parametrize("arch", [80, 89, 90, 120])
def test_only_second_launches_are_dependent(arch: int) -> None:
    forms = [(op, one) for op in ops() for one in triton_compile.specializations(op)]
    dependent = {(op, one.name.split()[0]) for op, one in forms if "launch_pdl" in one.on(arch)[1]}
    assert dependent == ({pair[2:] for pair in PAIRS} if arch >= 90 else set())
    assert {one.on(arch)[0].get("PDL", arch >= 90) for _, one in forms} == {arch >= 90}


def test_ahead_of_time_sees_spills(tmp_path: Path) -> None:
    script = (
        "from tests.helpers.triton_compile import *; (one, *_) = specializations('reorder_cache');"
        "print(usage('', one, 90).stack, usage('', one, 90, maxnreg=24).stack)"
    )
    as_it_is, with_few_registers = map(int, run_compiled(tmp_path, "-c", script).split())
    assert as_it_is == 0 < with_few_registers


def test_an_interrupt_ends_the_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "pid"
    script = (
        "import subprocess; process = subprocess.Popen(['sleep', '60']);"
        f"open({str(started)!r}, 'w').write(f'{{process.pid}}.'); process.wait()"
    )

    def interrupted(process: subprocess.Popen[str]) -> None:
        while not (started.exists() and started.read_text().endswith(".")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_compiled(tmp_path, "-c", script)
    assert has_ended(int(started.read_text()[:-1]))


def test_integers_are_parameters(tmp_path: Path) -> None:
    """In a tuple a launch would specialise them by value."""
    script = (
        "from dataclasses import replace; from tests.helpers.triton_compile import *;"
        "(one, *_) = specializations('reorder_cache');"
        "usage('', replace(one, signature={**one.signature, 'tensors': ('*i64', 'i32')}), 90)"
    )
    with pytest.raises(AssertionError, match="`tensors` must have pointers only"):
        run_compiled(tmp_path, "-c", script)


def test_a_launch_settles_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[None] = []
    monkeypatch.setattr(_specialization, "settle", lambda: settled.append(None))
    launch(KERNEL, (1,), torch.zeros(1), Tables(torch.zeros(1), torch.zeros(1)), 0.5, num_warps=4, BLOCK=64)
    assert len(settled) == 1


class FakeKernel:
    """A substitute for a kernel of this module."""

    __name__ = "fake"

    def __init__(self, fn: Callable[..., None]) -> None:
        self.fn, self.arg_names, self.launches = fn, fn.__code__.co_varnames, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            self.launches += 1

        return run


class Tables(NamedTuple):
    y: Any
    ids: Any


def _scale(x: Any, tables: Any, factor: Any, BLOCK: Any) -> None:
    """Annotated like a kernel."""


_scale.__annotations__ = {"factor": torch.float32, "BLOCK": "constexpr", "return": None}
KERNEL = FakeKernel(_scale)


def specializations() -> list[Specialization]:
    signature = signature_of(KERNEL, {"x": "fp16", "tables": Tables("fp32", "i64")})
    assert signature == {"x": "*fp16", "tables": Tables("*fp32", "*i64"), "factor": "fp32"}
    return [Specialization("", KERNEL, signature, {"BLOCK": 64}, 4)]


@pytest.mark.parametrize(
    ("dtype", "dtype_of_ids", "block", "num_warps", "listed"),
    [
        (torch.float16, torch.int64, 64, 4, True),
        (torch.bfloat16, torch.int64, 64, 4, False),
        (torch.float16, torch.int32, 64, 4, False),
        (torch.float16, torch.int64, 128, 4, False),
        (torch.float16, torch.int64, 64, 8, False),
    ],
)
def test_launches_of_listed_forms_only(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    dtype_of_ids: torch.dtype,
    block: int,
    num_warps: int,
    listed: bool,
) -> None:
    before = KERNEL.launches
    monkeypatch.setattr(triton_launches, "_listed", specializations)
    x, tables = torch.zeros(1, dtype=dtype), Tables(torch.zeros(1), torch.zeros(1, dtype=dtype_of_ids))
    with only_listed_launches():
        if listed:
            launch(KERNEL, (1,), x, tables, 0.5, num_warps=num_warps, BLOCK=block)
        else:
            with pytest.raises(AssertionError, match="is not in specializations"):
                launch(KERNEL, (1,), x, tables, 0.5, num_warps=num_warps, BLOCK=block)
    assert KERNEL.launches == before + listed
