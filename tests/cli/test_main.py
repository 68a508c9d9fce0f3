"""The program: help, exit codes, errors in one line, interruption, a closed pipe, and real processes."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pygen.cli import config
from pygen.cli.main import COMMANDS
from tests.cli.conftest import Shell

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command_and_exit_code(shell: Shell) -> None:
    code, out, err = shell("--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^  (\w+) +[a-z]", out, re.MULTILINE)[-len(COMMANDS) - 5 : -5] == list(COMMANDS)
    assert re.findall(r"^  (\d+) ", out, re.MULTILINE) == ["0", "1", "2", "130", "141"]
    assert shell("--version").out == "pygen 1.2.3\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, shell: Shell) -> None:
    code, out, err = shell(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pygen {command}") and "--debug" in out
    module = importlib.import_module(f"pygen.cli.{command}")
    assert (module.__doc__ or "").strip() in out
    assert max(map(len, (module.__doc__ or "").splitlines())) <= 85


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "pygen: the following arguments are required: COMMAND (see pygen --help)"),
        (("genrate",), "pygen: argument COMMAND: invalid choice: 'genrate' (choose from "),
        (("config", "check"), "pygen config: the following arguments are required: FILE"),
        (("config", "check", "x", "--strit"), "pygen config: unknown argument '--strit'; did you mean --strict? (see"),
        (("generate", "x", "--temp", "1"), "pygen generate: unknown argument '--temp'"),
        (("generate", "x", "--temprature=1"), "unknown argument '--temprature=1'; did you mean --temperature?"),
        (
            ("generate", "x", "--top-p", "1.2"),
            "pygen generate: argument --top-p: `top_p` must be a number in [0, 1], or",
        ),
        (
            ("generate", "x", "--stop-strings", "[1]"),
            "`stop_strings` must be a non-empty string or a list of non-empty",
        ),
        (("generate", "x", "--file", "y"), "pygen generate: a prompt and --file exclude each other"),
        (("generate", "x", "--jsonl", "y"), "pygen generate: --jsonl and a prompt exclude each other"),
        (("generate", "x", "--output-scores"), "argument --output-scores: returns more than a text"),
        (("generate", "x", "--dtype", "float33"), "argument --dtype: no dtype of torch: 'float33'"),
        (("doctor", "--device", "nowhere"), "pygen doctor: argument --device: no device of torch: 'nowhere'"),
        (("bench", "--rows", "1,x"), "pygen bench: argument --rows: must be numbers of rows as in 1,8,64, got '1,x'"),
        (("bench", "--vocab-size", "3"), "argument --vocab-size: must be at least 64, got 3"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(words: tuple[str, ...], message: str, shell: Shell) -> None:
    code, out, err = shell(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError("no\n  such file"), 1, "pygen config: no such file\n"),
        (NotImplementedError("not here"), 1, "pygen config: not here\n"),
        (KeyError("k"), 1, "pygen config: KeyError: 'k' (--debug shows where)\n"),
        (MemoryError(), 1, "pygen config: MemoryError:  (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "\npygen config: interrupted\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_may_go_wrong(
    error: BaseException, code: int, message: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: Any) -> int:
        raise error

    monkeypatch.setattr(config, "run", fail)
    # The process goes on after this one, so its standard output must stay open.
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert shell("config", "check", "x") == (code, "", message)


def test_debug_raises(shell: Shell) -> None:
    with pytest.raises(FileNotFoundError):
        shell("config", "check", "/nowhere.json", "--debug")
    assert shell("config", "check", "/nowhere.json").code == 1


def test_a_warning_is_one_line(shell: Shell, folder: str) -> None:
    code, _, err = shell("generate", "fox", "--model", folder, "--max-new-tokens", "2", "--min-new-tokens", "5")
    assert (code, err.count("\n")) == (0, 1) and re.match(r"pygen: `min_new_tokens` asks for \d+ tokens", err)


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pygen", *words]
    pipe = subprocess.PIPE
    # A shell starts background jobs with the interrupt ignored, and their children inherit that.
    return subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=_take_interrupts, **options
    )


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_process_reads_standard_input(folder: str) -> None:
    with process("generate", "--model", folder, "--max-new-tokens", "4", "--stats") as running:
        out, err = running.communicate("The quick brown fox\n", timeout=120)
    assert running.returncode == 0 and len(out) > 1 and re.fullmatch(r"4 tokens in \S+ s, \S+ tokens/s\n", err)


def test_ctrl_c_ends_a_process_cleanly(folder: str) -> None:
    # So many tokens that the signal finds it at work on any machine.
    with process("generate", "fox", "--model", folder, "--max-new-tokens", "100000", "--max-time", "60") as running:
        assert running.stdout is not None and running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and err.endswith("\npygen generate: interrupted\n") and "Traceback" not in err


def test_a_closed_pipe_is_quiet(folder: str) -> None:
    with process("generate", "fox", "--model", folder, "--max-new-tokens", "100000", "--max-time", "60") as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.wait(timeout=120) == 141
        assert running.stderr.read() == ""
