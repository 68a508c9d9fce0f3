"""Which backend runs: choice, precedence, reasons, and the warning of a fallback."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from pygen import backends
from pygen.backends import BackendError, Dispatcher, available_backends, use_backend
from pygen.ops import prepare_sample, sample

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOGITS = torch.zeros(1, 8)


def test_the_cpu_backend_runs_in_this_suite() -> None:
    assert available_backends()["cpu"] is None
    assert available_backends()["torch"] is None
    assert prepare_sample(LOGITS).backend == "cpu"


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGEN_BACKEND", "torch")
    assert prepare_sample(LOGITS).backend == "torch"
    with use_backend("cpu"):
        assert prepare_sample(LOGITS).backend == "cpu"
        assert prepare_sample(LOGITS, backend="torch").backend == "torch"
        with use_backend("auto"):
            assert prepare_sample(LOGITS).backend == "cpu"
    assert prepare_sample(LOGITS).backend == "torch"
    assert prepare_sample(LOGITS, backend="cpu").backend == "cpu"
    monkeypatch.setenv("PYGEN_BACKEND", "")
    assert prepare_sample(LOGITS).backend == "cpu"


def test_use_backend_ends_with_an_error() -> None:
    with pytest.raises(RuntimeError), use_backend("torch"):
        raise RuntimeError
    assert prepare_sample(LOGITS).backend == "cpu"


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = "one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'"
    with pytest.raises(ValueError, match=f"`name` must be {allowed}"), use_backend("gpu"):
        pass
    monkeypatch.setenv("PYGEN_BACKEND", "gpu")
    with pytest.raises(ValueError, match=f"`PYGEN_BACKEND` must be {allowed}"):
        sample(LOGITS)


def test_a_refusal_lists_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reason in (("cpu", "it is Sunday"), ("cuda", "it rains"), ("triton", "it snows")):
        monkeypatch.setitem(backends._MACHINE_REASONS, name, functools.partial(str, reason))
    with pytest.raises(BackendError) as raised:
        sample(LOGITS, backend="cpu")
    assert isinstance(raised.value, NotImplementedError)
    assert str(raised.value) == (
        "`sample`: backend 'cpu' cannot run on cpu; cpu: it is Sunday; cuda: it rains; triton: it snows; torch: can run"
    )


def test_falling_to_torch_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setitem(backends._MACHINE_REASONS, "cpu", lambda: "it is Sunday")
    with pytest.warns(
        RuntimeWarning, match="`sample` falls back to backend 'torch': backend 'cpu' cannot run: it is Sun"
    ):
        assert prepare_sample(LOGITS).backend == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare_sample(LOGITS).backend == "torch"
        assert prepare_sample(LOGITS, backend="torch").backend == "torch"


def test_devices_and_missing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "triton"):
        monkeypatch.setitem(backends._MACHINE_REASONS, name, lambda: None)
    table = Dispatcher("op", cpu="C", cuda="G")
    assert table.resolve(CPU) == ("cpu", "C")
    assert table.resolve(CUDA) == ("cuda", "G")
    assert table.reasons(CUDA) == {
        "cpu": "the tensor is on cuda",
        "cuda": None,
        "triton": "`op` has no kernel for it",
        "torch": "`op` has no kernel for it",
    }
    with pytest.raises(
        BackendError, match="`op`: backend 'cpu' cannot run on cuda; cpu: the tensor is on cuda; cuda: can"
    ):
        table.resolve(CUDA, "cpu")
    with pytest.raises(BackendError, match="`op`: no backend can run on meta"):
        table.resolve(torch.device("meta"))
