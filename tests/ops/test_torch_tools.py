"""Tensors of torch's other tools: an op takes those with ordinary memory, and names the reason to refuse others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pygen import ops
from pygen.ops import BeamState
from tests.helpers.logits import make_logits

LOGITS = make_logits("normal", 2, 40)
IDS = torch.tensor([[1, 2], [3, 4]])


def _beam_step(logits: Tensor) -> object:
    return ops.beam_step(logits, BeamState.create(torch.zeros(1, 1, dtype=torch.int64), 2, 2))


def _beam_finalize(scores: Tensor) -> object:
    state = BeamState.create(torch.zeros(1, 1, dtype=torch.int64), 2, 2)
    state.finished_scores = scores
    return ops.beam_finalize(state)


def _process_into(out: Tensor) -> Tensor:
    return ops.process_logits(LOGITS, out=out)


# A call of one tensor, and a tensor that it accepts.
CALLS: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "sample": (lambda x: ops.sample(x, seed=1), LOGITS),
    "sample(bias)": (lambda x: ops.sample(LOGITS, bias=x, seed=1), LOGITS),
    "sample(temperature)": (lambda x: ops.sample(LOGITS, temperature=x, seed=1), torch.ones(2)),
    "prepared": (lambda x: ops.prepare_sample(LOGITS, seed=1)(x), LOGITS),
    "process_logits": (ops.process_logits, LOGITS),
    "process_logits(out)": (_process_into, torch.zeros(2, 40)),
    "token_logprobs": (lambda x: ops.token_logprobs(x, IDS), LOGITS),
    "verify_draft": (lambda x: ops.verify_draft(x, IDS, seed=1), make_logits("normal", 6, 40).view(2, 3, 40)),
    "beam_step": (_beam_step, LOGITS),
    "beam_finalize": (_beam_finalize, torch.zeros(1, 2)),
    "reorder_cache": (lambda x: ops.reorder_cache(x, torch.tensor([1, 0])), torch.zeros(2, 1, 3, 4)),
}


def negated(x: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([*x])


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "negated": (negated, "a negated view: pass its resolve_neg()"),
    "sparse": (Tensor.to_sparse, "a sparse one: pass its to_dense()"),
    "mkldnn": (Tensor.to_mkldnn, "one of layout torch._mkldnn: pass its to_dense()"),
    "nested": (nested, "a nested one: pass its to_padded_tensor(padding)"),
    "zero": (lambda x: torch._efficientzerotensor(x.shape), "one without allocated memory: pass its clone()"),
    "quantized": (
        lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.qint8),
        "a quantized one: pass its dequantize()",
    ),
    "fake": (lambda x: FakeTensorMode().from_tensor(x), "a FakeTensor: it has no values"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tensors_are_refused(name: str, kind: str) -> None:
    call, given = CALLS[name]
    make, words = KINDS[kind]
    if kind == "mkldnn" and not torch.backends.mkldnn.is_available():
        make, words = KINDS["sparse"]
    state = torch.get_rng_state()
    with pytest.raises(TypeError, match="` must be a plain tensor, got ") as raised:
        call(make(given))
    assert str(raised.value).endswith(words)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["FakeTensorMode", "torch.jit.trace", "ProxyTorchDispatchMode"])
def test_calls_are_not_recorded(name: str, kind: str) -> None:
    """Covers torch.jit.trace, make_fx, which torch.export without dynamo uses, and fake tensors."""
    call, given = CALLS[name]
    with pytest.raises(TypeError, match=f"` must be a tensor outside of {kind}, which cannot see into"):
        if kind == "FakeTensorMode":
            with FakeTensorMode(allow_non_fake_inputs=True):
                call(given)
        elif kind == "torch.jit.trace":
            torch.jit.trace(lambda x: call(x) or x, (given,), check_trace=False)
        else:
            make_fx(lambda x: call(x))(given)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda call: torch.vmap(lambda x: call(x) and x), "Vmap"),
        (lambda call: torch.func.grad(lambda x: (call(x), x.sum())[1]), "Grad"),
        (lambda call: torch.func.functionalize(lambda x: (call(x), x + 1)[1]), "Functionalize"),
    ],
    ids=["vmap", "grad", "functionalize"],
)
def test_transforms_of_functions_are_refused(name: str, transform: Callable[[Any], Any], words: str) -> None:
    call, given = CALLS[name]
    with pytest.raises(TypeError, match=f"` must be a tensor outside of torch.func's transform {words}"):
        transform(call)(given)


def test_dtensors_are_refused(tmp_path: Any) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = DTensor.from_local(LOGITS, init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match=r"got a DTensor: pass its to_local\(\) or full_tensor\(\)"):
            ops.sample(spread)
    finally:
        distributed.destroy_process_group()


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class OwnTensor(Tensor):
    pass


@pytest.mark.parametrize(
    "make",
    [
        torch.nn.Parameter,
        lambda x: x.clone().requires_grad_(),
        lambda x: x.clone().requires_grad_() * 1.0,
        lambda x: x.as_subclass(OwnTensor),
        lambda x: x.neg().neg(),
        lambda x: negated(x).resolve_neg(),
        lambda x: negated(x) * 1.0,
    ],
    ids=["parameter", "leaf", "node", "subclass", "neg", "resolved", "times"],
)
def test_plain_tensors_of_every_origin_work(backend: str, make: Callable[[Tensor], Tensor]) -> None:
    expected = ops.sample(LOGITS, top_k=9, seed=3, backend=backend)
    for _ in range(2):
        result = ops.sample(make(LOGITS.clone()), top_k=9, seed=3, backend=backend)
        assert result.token_ids.equal(expected.token_ids) and not result.token_ids.requires_grad


@pytest.mark.parametrize("mode", [Watching, torch.inference_mode, lambda: torch.device("cpu"), torch.no_grad])
def test_modes_that_do_not_record_change_nothing(backend: str, mode: Callable[[], Any]) -> None:
    expected = ops.process_logits(LOGITS, top_p=0.8, backend=backend)
    with mode():
        assert ops.process_logits(LOGITS * 1.0, top_p=0.8, backend=backend).equal(expected)


def test_a_tensor_on_the_device_meta_is_refused_for_its_device() -> None:
    with pytest.raises(NotImplementedError, match="backend 'cpu' cannot run on meta"):
        ops.sample(LOGITS.to("meta"), seed=1, backend="cpu")
    with pytest.raises(ValueError, match="`bias` must be on cpu like `logits`, got meta"):
        ops.sample(LOGITS, bias=LOGITS.to("meta"), seed=1)
