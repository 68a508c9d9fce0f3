"""Every page of the documentation: its code runs, its outputs and commands are real, its links resolve."""

from __future__ import annotations

import functools
import importlib.util
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

import pygen
from pygen.cli import smollm2

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "tests/cuda_host")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

CHECKPOINT = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What a block may need, and whether this machine has it. Without it, the test only compiles the block.
NEEDS = {
    "a GPU": torch.cuda.is_available(),
    "a build with sanitizers": False,
    "xgrammar": importlib.util.find_spec("xgrammar") is not None,
    # tests/integrations runs these blocks.
    "TRL": False,
}


class Block(NamedTuple):
    needs: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    pattern = r"^(?:<!-- needs: (.*) -->\n)?```(\S*)\n(.*?)^```$"
    return [Block(*found) for found in re.findall(pattern, page.read_text("utf-8"), re.MULTILINE | re.DOTALL)]


@functools.cache
def checkpoint() -> dict[str, Any]:
    """Provides the checkpoint that the pages load, from its package and not from the hub.

    It keeps two layers, because no block depends on the generated text.
    """
    folder = smollm2.model_dir(progress=False)
    return {
        "AutoModelForCausalLM": transformers.AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2),
        "AutoTokenizer": transformers.AutoTokenizer.from_pretrained(folder),
    }


@pytest.fixture(autouse=True)
def checkpoint_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = checkpoint()
    for name, part in loaded.items():

        def from_pretrained(pretrained: str, part: Any = part, **kwargs: Any) -> Any:
            assert pretrained == CHECKPOINT
            return part

        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", from_pretrained)


@each_page
def test_blocks_run_in_order_and_print_what_is_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    printed = None
    for needs, language, code in blocks(page):
        if language == "python":
            compiled = compile(code, page.name, "exec")
            printed = None
            if not needs or NEEDS[needs]:
                exec(compiled, namespace)
                printed = capsys.readouterr().out
        elif language == "output":
            assert printed is None or printed.split() == code.split()


@each_page
def test_commands_exist(page: Path) -> None:
    for _, language, code in blocks(page):
        assert language in ("python", "output", "sh", "text"), language
        for line in code.splitlines() if language == "sh" else ():
            words = [word for word in line.split("#")[0].split() if not re.match(r"[A-Z_]+=", word)]
            if words[:1] == ["make"]:
                subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, check=True, capture_output=True)
            elif words[1:2] == ["-m"] and words[2] not in ("pip", "venv", "pytest"):
                assert importlib.util.find_spec(words[2]) is not None, line
            elif words[:1] == ["bash"]:
                assert (ROOT / words[1]).is_file(), line


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path = target.partition("#")[0]
        assert target.startswith("https://") or not path or (page.parent / path).exists(), target


MODULES = (pygen, pygen.ops, pygen.processors, pygen.candidates, pygen.rollout)


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    headings = set(re.findall(r"^      heading: pygen\.(?:\w+\.)?(\w+)$", pages, re.MULTILINE))
    public = {name for module in MODULES for name in module.__all__}
    assert public - headings == {"__version__", "candidates", "ops", "processors", "rollout"}


def test_the_page_of_knobs_is_that_of_the_table() -> None:
    written = runpy.run_path(str(ROOT / "docs/_site/knobs.py"))["page"]()
    assert (ROOT / "docs/knobs.md").read_text("utf-8") == written, "run python docs/_site/knobs.py"


def test_the_readme_shows_the_two_commands() -> None:
    shown = {line.split("#")[0].strip() for block in blocks(ROOT / "README.md") for line in block.code.splitlines()}
    assert {"make demo", "make test"} <= shown
