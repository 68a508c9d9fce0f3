"""Every module imports from its own layer or from lower ones, and no files import each other in a circle.

Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From bottom to top: modules, folders, and for "ops._" all modules with that prefix.
LAYERS = (
    "pygen.rules",
    "pygen.notices",
    "pygen.rng",
    "pygen.backends",
    "pygen.knobs",
    "pygen.ops._",
    "pygen.reference",
    "triton_kernels",
    "pygen.ops",
    "pygen.outputs",
    "pygen.rollout",
    "pygen.config",
    "pygen.request",
    "pygen.streamers",
    "pygen.models",
    "pygen.stopping",
    "pygen.call",
    "pygen.processors",
    "pygen.watermark",
    "pygen.grammar",
    "pygen.plan",
    "pygen.candidates",
    "pygen.graph",
    "pygen.decode",
    "pygen.generate",
    "pygen.explain",
    "pygen.mixin",
    "pygen.patching",
    "pygen.streaming",
    "pygen.batch",
    "pygen.integrations",
    "pygen.cli",
    "pygen",
)
# The extension imports nothing, so every layer may use it.
EXTENSION = "_C"


def modules() -> dict[str, Path]:
    """Returns the Python files of the product by their dotted names."""
    found = {}
    for folder in ("pygen", "triton_kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Yields the modules of the product that a module imports, anywhere in its file."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (in_checkout(alias.name) for alias in node.names if in_checkout(alias.name) in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = in_checkout(node.module)
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                if submodule in MODULES:
                    yield submodule
                elif module in MODULES and (module, alias.name) != ("pygen", EXTENSION):
                    yield module


def in_checkout(name: str) -> str:
    """Maps a module name to its path in the checkout, where Triton's kernels have their own top-level folder."""
    return name.removeprefix("pygen.") if name.startswith("pygen.triton_kernels") else name


def layer(name: str) -> int:
    """Returns the index of the layer with the longest name that covers the module."""
    covering = [n for n in LAYERS if name == n or name.startswith(f"{n}.") or (n.endswith("_") and name.startswith(n))]
    return LAYERS.index(max(covering, key=len))


IMPORTS = {name: sorted({*imported(name)} - {name}) for name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_come_from_the_same_layer_or_lower_ones(name: str) -> None:
    assert [other for other in IMPORTS[name] if layer(other) > layer(name)] == []


def test_no_files_import_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_ops_and_tests_use_the_reference() -> None:
    users = {name for name, others in IMPORTS.items() if any(other.startswith("pygen.reference") for other in others)}
    assert {name for name in users if not name.startswith(("pygen.ops.", "pygen.reference."))} == set()


def test_the_top_of_the_package_holds_public_topics_only() -> None:
    assert len({path.stem for path in (ROOT / "pygen").glob("*.py")} - {"__main__"}) <= 12


def test_a_name_outside_the_layers_is_found() -> None:
    assert layer("pygen.ops._shaping") < layer("pygen.reference.sample") < layer("pygen.ops.sample")
    assert layer("pygen.nowhere") == len(LAYERS) - 1


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/internals/architecture.md"])
def test_pictures_of_the_layers_are_right(page: str) -> None:
    text = (ROOT / page).read_text()
    (picture,) = [block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "\nreference" in block]
    names = {name.removeprefix("pygen.").replace("ops._", "ops/_*.py"): number for number, name in enumerate(LAYERS)}
    lines = [[names[word] for word in re.split(r" {2,}", line) if word in names] for line in picture.splitlines()]
    assert sorted(number for line in lines for number in line) == [*range(len(LAYERS) - 1)]
    assert all(min(above) > max(below) for above, below in itertools.pairwise(lines))
