"""The README's code runs, its commands exist, its links lead somewhere, and its table is what was measured."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "torch.Size([4, 16]) ['" in printed
    assert "torch.Size([1, 8])" in printed


def test_blocks_are_python_or_shell() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"}


def test_shell_blocks_name_targets_of_the_makefile() -> None:
    for language, code in BLOCKS:
        if language == "sh":
            for line in code.splitlines():
                command = line.split("#")[0].split()
                assert command[0] == "make"
                subprocess.run(["make", "--dry-run", command[1]], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
