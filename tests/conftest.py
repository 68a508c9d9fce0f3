"""Fixtures of the whole suite: the backends that run here, poisoned memory, and repeatable hypothesis."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

from pygen.backends import available_backends
from tests.helpers.extra_backends import kernels_over_cpu_tensors

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=100, database=None)
hypothesis.settings.load_profile("suite")

INT_POISON = -0x5A5A5A5A5A5A5A5A


def _cpu_isas() -> list[str]:
    """Returns the instruction sets that the extension was built for and that this machine supports."""
    if available_backends()["cpu"] is not None:
        return ["missing"]
    from pygen import _C

    current, runnable = _C.cpu_isa(), []
    for isa in _C.build_info()["cpu_isas"]:
        try:
            _C.set_cpu_isa(isa)
        except ValueError:
            continue
        runnable.append(isa)
    _C.set_cpu_isa(current)
    return runnable


CPU_ISAS = _cpu_isas()
# torch, cpu (once per instruction set), triton (in the interpreter, or on a GPU), cuda (on a GPU), cuda_host.
CHOSEN = os.environ.get("PYGEN_TEST_BACKENDS", "")
BACKENDS = [
    parameter
    for name in (CHOSEN or "torch,cpu").split(",")
    for parameter in ([f"cpu-{isa}" for isa in CPU_ISAS] if name == "cpu" else [name])
]


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Restores transformers' verbosity, a global setting that pygen follows and tests may change."""
    loaded = sys.modules.get("transformers.utils.logging")
    before = logging.WARNING if loaded is None else loaded.get_verbosity()
    yield
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None:
        loaded.set_verbosity(before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The value for `backend=`; the CPU kernels run once per instruction set. A missing extension is a failure."""
    yield from _backend(request.param)


@pytest.fixture(params=[parameter for parameter in BACKENDS if parameter != "torch"])
def kernel_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `backend`, without the reference."""
    yield from _backend(request.param)


@pytest.fixture(params=[f"cpu-{isa}" for isa in CPU_ISAS])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU kernels only, for behaviour that no other backend has."""
    yield from _backend(request.param)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Frees no cycles meanwhile: what it makes stays, and Python would search through all of it again and again."""
    gc.disable()
    yield
    gc.enable()


# Tests of a minute or more run first, so that no process idles at the end.
LONGEST = ("test_triton_compile.py::test_ahead_of_time[", "test_build.py::test_wheel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs only tests that take a backend if PYGEN_TEST_BACKENDS chooses backends."""
    if not CHOSEN:
        items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
        return
    taken: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        taken[bool({"backend", "kernel_backend"} & set(getattr(item, "fixturenames", ())))].append(item)
    config.hook.pytest_deselected(items=taken[False])
    items[:] = taken[True]


def _backend(parameter: str) -> Iterator[str]:
    name, _, isa = parameter.partition("-")
    if name == "triton":
        # If pygen is only on the path and not installed, it lacks its Triton kernels.
        from tests.helpers.triton_launches import only_listed_launches

        with only_listed_launches():
            yield kernels_over_cpu_tensors(name)
        return
    if name != "cpu":
        yield name if name == "torch" else kernels_over_cpu_tensors(name)
        return
    reason = available_backends()["cpu"]
    if reason is not None:
        pytest.fail(f"the cpu backend must run in the suite, but {reason}")
    from pygen import _C

    current = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    yield name
    _C.set_cpu_isa(current)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fills tensors of torch.empty with NaN, an invalid id or ones, which reveals reads of uninitialised memory."""
    listed = _compilers_list()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoning(getattr(owner, name)))
    yield
    if _compilers_list() is not listed:
        # A list with these replacements would keep the compiler from tracing torch.empty in later tests.
        sys.modules["torch._dynamo.trace_rules"].clear_lru_cache()


def _compilers_list() -> object:
    """The list of torch's functions that the compiler makes once, and again after a process group; None before."""
    rules = sys.modules.get("torch._dynamo.trace_rules")
    return None if rules is None else rules.get_torch_obj_rule_map()


def _poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        with torch.no_grad():
            if tensor.dtype is torch.int64:
                tensor.fill_(INT_POISON)
            elif tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(torch.nan)
            else:
                tensor.fill_(True if tensor.dtype is torch.bool else 0x5A)
        return tensor

    return poisoned


@pytest.fixture
def whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes transformers apply a bias or bad word that is the whole text and one token, which it leaves out.

    The fixture prepends a column with an id that no sequence contains.
    """
    from transformers import SequenceBiasLogitsProcessor

    call = SequenceBiasLogitsProcessor.__call__

    def with_a_column_more(self: Any, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        return call(self, torch.nn.functional.pad(input_ids, (1, 0), value=-1), scores)

    monkeypatch.setattr(SequenceBiasLogitsProcessor, "__call__", with_a_column_more)
