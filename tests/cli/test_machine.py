"""doctor and bench: what they show, and that a wrong kernel is found."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch

import pygen
from pygen.cli import bench_cases
from pygen.cli import self_test as module
from pygen.cli.self_test import self_test
from pygen.ops import DISPATCHERS
from tests.cli.conftest import Shell

CPU = torch.device("cpu")


def test_doctor(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGEN_CPU_ISA", "generic")
    code, out, err = shell("doctor", "--device", "cpu")
    assert (code, err) == (0, "")
    versions, rest = out.split("backends\n")
    shown = dict(re.findall(r"^  (\S+) +(.*)$", versions, re.MULTILINE))
    assert shown["pygen"].startswith("1.2.3, extension 0.1.0, ") and shown["PYGEN_CPU_ISA"] == "generic"
    assert shown["torch"].startswith(torch.__version__)
    for name, reason in pygen.available_backends().items():
        assert re.search(rf"^  {name} +{'runs' if reason is None else 'cannot run: '}", rest, re.MULTILINE)
    tested = re.findall(r"^  (\w+) +cpu +ok \(\d", rest, re.MULTILINE)
    assert sorted(tested) == sorted(DISPATCHERS)
    assert "test of the ops" not in shell("doctor", "--no-test").out


def test_doctor_without_the_extension(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygen._C", None)
    monkeypatch.delattr(pygen, "_C")
    code, out, _ = shell("doctor", "--device", "cpu")
    assert code == 0 and "extension: " in out
    assert re.search(r"^  cpu +cannot run: the extension pygen\._C cannot be imported", out, re.MULTILINE)
    assert re.search(r"^  sample +torch; backend 'cpu' cannot run", out, re.MULTILINE)


@pytest.mark.parametrize("op", DISPATCHERS)
def test_a_wrong_kernel_is_found(op: str, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._RUNS[op]

    def wrong(logits: torch.Tensor, backend: str) -> list[torch.Tensor]:
        results = run(logits, backend)
        if backend == "cpu":
            results[-1] = results[-1] + 1
        return results

    monkeypatch.setattr(module, "_RUNS", {op: wrong})
    (result,) = self_test(CPU)
    assert (result.op, result.backend) == (op, "cpu") and "reference" in str(result.problem)
    if op == "sample":
        code, out, _ = shell("doctor", "--device", "cpu")
        assert code == 1 and "1 tests failed" in out and out.count("FAILED: result ") == 1


def test_a_kernel_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **knobs: Any) -> None:
        raise RuntimeError("launch failed")

    monkeypatch.setattr(module, "_RUNS", {"reorder_cache": module._RUNS["reorder_cache"]})
    monkeypatch.setitem(DISPATCHERS["reorder_cache"].entries, "cpu", fails)
    assert [result.problem for result in self_test(CPU)] == ["RuntimeError: launch failed"]


def test_bench(shell: Shell) -> None:
    call = ("bench", "--device", "cpu", "--vocab-size", "500", "--seconds", "0.001", "--rows", "1,4")
    code, out, err = shell(*call)
    assert (code, err) == (0, "")
    rows = [line.split()[0] for line in out.splitlines()[2:]]
    first = ["sample", "sample", "process_logits", "token_logprobs"]
    assert rows == [*first, "reorder_cache", *first, "beam_step", "reorder_cache"]
    assert all(re.search(r" \d+\.\d{3} +\d+\.\d{3} +\d+\.\dx  cpu$", line) for line in out.splitlines()[2:])
    assert shell(*call, "--dtype", "bfloat16").code == 0


def test_a_wrong_result_gets_no_ratio(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shaped = bench_cases._shaped
    monkeypatch.setattr(bench_cases, "_shaped", lambda logits, history: shaped(logits, history) + 1)
    code, out, _ = shell("bench", "--device", "cpu", "--vocab-size", "500", "--seconds", "0.001", "--rows", "1")
    (line,) = [line for line in out.splitlines() if line.startswith("process_logits")]
    assert code == 1 and line.endswith("WRONG: other values") and "x  cpu" not in line
