"""One-off calls that reuse a plan without new checks: the same results and refusals, and no tensor kept alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import backends
from pygen.ops import process_logits, sample
from pygen.ops._plans import Plans
from pygen.ops.sample import _plans
from tests.helpers.logits import make_history, make_logits, strided_rows

ROWS, VOCAB_SIZE = 2, 300
KNOBS: list[dict[str, Any]] = [
    {},
    {"do_sample": False, "logprobs": 3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "logprobs": 2},
    {"top_k": 20, "top_p": 0.9, "output_kept": True, "kept_limit": 12, "logprobs": 2},
    {"suppress": [3, 5, -1, 10**9]},
    {"repetition_penalty": 1.3, "prompt_lengths": 2, "input_ids": make_history(ROWS, 9, VOCAB_SIZE)},
    {"repetition_penalty": 1.3, "input_ids": make_history(ROWS, 9, VOCAB_SIZE).int()},
    {"bias": make_logits("normal", 1, VOCAB_SIZE), "suppress": torch.tensor([[4, 7]], dtype=torch.int32)},
    {"bias": make_logits("normal", ROWS, VOCAB_SIZE), "token_bitmask": torch.full((1, 10), 0x55AA55AA)},
]
for _knobs in KNOBS:
    if "token_bitmask" in _knobs:
        _knobs["token_bitmask"] = _knobs["token_bitmask"].to(torch.int32)


def shaping_of(knobs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in knobs.items() if name not in ("logprobs", "output_kept", "kept_limit")}


def leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple) else [value]


def assert_same(actual: Any, expected: Any) -> None:
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        assert a is None if b is None else torch.allclose(a, b, equal_nan=True)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("source", [{"seed": 3}, {"seed": 2**64 - 1, "step": 5}, {}, {"rng": "torch"}], ids=str)
def test_the_second_call_is_like_the_first(cpu_backend: str, knobs: dict[str, Any], source: dict[str, Any]) -> None:
    """The second call has other logits and tables of the same form, at other addresses."""
    for number in range(3):
        logits = make_logits("normal", ROWS, VOCAB_SIZE, seed=number)
        if number == 2:
            logits = strided_rows(logits)
        given: dict[str, Any] = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in knobs.items()
        }
        if "input_ids" in given:
            given["input_ids"].add_(number)
        torch.manual_seed(9)
        actual = sample(logits, **given, **source, backend=cpu_backend)
        state = torch.get_rng_state()
        torch.manual_seed(9)
        assert_same(actual, sample(logits, **given, **source, backend="torch"))
        assert torch.get_rng_state().equal(state)
        shaping = shaping_of(given)
        scores = process_logits(logits, **shaping, backend=cpu_backend)
        torch.testing.assert_close(scores, process_logits(logits, **shaping, backend="torch"))


def test_results_are_the_callers_own() -> None:
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    first, scores = sample(logits, seed=1), process_logits(logits, top_k=5)
    kept = first.token_ids.clone(), scores.clone()
    sample(-logits, seed=1)
    process_logits(-logits, top_k=5)
    assert first.token_ids.equal(kept[0]) and scores.equal(kept[1])


def test_equal_numbers_of_other_types_are_other_calls() -> None:
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    ids = make_history(ROWS, 9, VOCAB_SIZE)
    call: dict[str, Any] = {"top_k": 1, "suppress": [1]}
    sample(logits, **call, seed=1, input_ids=ids)
    for wrong in ({"top_k": 1.0}, {"top_k": True}, {"do_sample": 1}, {"suppress": [True]}, {"suppress": [1.0]}):
        with pytest.raises(TypeError):
            sample(logits, **{**call, **wrong}, seed=1, input_ids=ids)
    for other in (ids.short(), ids.float(), ids[:, None], ids.t().contiguous().t(), ids.to("meta")):
        with pytest.raises((TypeError, ValueError)):
            sample(logits, top_k=1, seed=1, suppress=[1], input_ids=other)


@pytest.mark.parametrize(
    "wrong", [{"seed": 2**64}, {"seed": -1}, {"step": 2**32}, {"step": -1}, {"seed": True}], ids=str
)
def test_seeds_and_steps_are_checked_in_every_call(wrong: dict[str, Any]) -> None:
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    for _ in range(2):
        sample(logits, seed=1, step=1)
        with pytest.raises((TypeError, ValueError)):
            sample(logits, **{"seed": 1, "step": 1, **wrong})


def test_a_changed_choice_of_backend_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    for _ in range(2):
        sample(logits, seed=1)
    with backends.use_backend("cuda"), pytest.raises(backends.BackendError):
        sample(logits, seed=1)
    monkeypatch.setenv("PYGEN_BACKEND", "none")
    with pytest.raises(ValueError, match="PYGEN_BACKEND"):
        sample(logits, seed=1)


def test_no_tensor_of_a_caller_is_kept() -> None:
    logits, bias = make_logits("normal", ROWS, 123), torch.zeros(123)
    ended = [weakref.ref(logits), weakref.ref(bias)]
    for _ in range(2):
        sample(logits, bias=bias, seed=1, step=torch.zeros(ROWS, dtype=torch.int64))
        process_logits(logits, bias=bias)
    del logits, bias
    gc.collect()
    assert [reference() for reference in ended] == [None, None]


def test_plans_are_bounded_and_the_least_used_goes() -> None:
    plans: Plans[int] = Plans(_plans._dispatcher, size=3)
    for number in range(3):
        plans.keep(number, number)
    assert plans.find(0) == 0
    plans.keep(3, 3)
    assert [plans.find(number) for number in range(4)] == [0, None, 2, 3]
    for top_k in range(1, 300):
        sample(make_logits("normal", 1, 20), top_k=top_k, seed=1)
    assert len(_plans._plans) <= 256


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"temperature": [0.5, 2]}, {"temperature": torch.tensor([0.5, 2.0])}),
        ({"temperature": (0.5, 2)}, {"temperature": torch.tensor([0.5, 2.0])}),
        ({"temperature": torch.tensor(0.5)}, {"temperature": 0.5}),
        ({"temperature": torch.tensor(2)}, {"temperature": 2.0}),
        ({"top_p": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)}, {"top_p": 0.5}),
        ({"top_k": [3, 0]}, {"top_k": torch.tensor([3, 0])}),
        ({"top_k": torch.tensor(3, dtype=torch.int32)}, {"top_k": 3}),
        ({"do_sample": [True, False]}, {"do_sample": torch.tensor([True, False])}),
        ({"do_sample": torch.tensor(False)}, {"do_sample": False}),
        ({"seed": torch.tensor(7)}, {"seed": 7}),
        ({"step": [4, 6]}, {"step": torch.tensor([4, 6])}),
        ({"step": torch.tensor(4)}, {"step": 4}),
        ({"suppress": torch.tensor([[4, 7]])}, {"suppress": [4, 7]}),
        ({"suppress": torch.tensor([[4], [7]], dtype=torch.int32)}, {"suppress": torch.tensor([[4], [7]])}),
        ({"token_bitmask": torch.full((1, 10), 85).int()}, {"token_bitmask": torch.full((2, 10), 85).int()}),
        ({"bias": torch.arange(300.0)[None] / 99}, {"bias": torch.arange(300.0) / 99}),
    ],
    ids=str,
)
def test_forms_of_one_knob(backend: str, given: dict[str, Any], meant: dict[str, Any]) -> None:
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    calls: list[Callable[..., Any]] = [lambda **knobs: sample(logits, **{"seed": 1, **knobs}, backend=backend)]
    if not {"seed", "step"} & {*given}:
        calls.append(lambda **knobs: process_logits(logits, **knobs, backend=backend))
    for call in calls:
        assert_same(call(**given), call(**meant))


def test_int32_tables_of_a_prepared_op_are_read_again(backend: str) -> None:
    from pygen.ops import prepare_process_logits

    logits, ids = make_logits("normal", ROWS, VOCAB_SIZE), make_history(ROWS, 4, VOCAB_SIZE).int()
    suppress = torch.tensor([3], dtype=torch.int32)
    knobs: dict[str, Any] = {"input_ids": ids, "suppress": suppress, "repetition_penalty": 1.5}
    prepared = prepare_process_logits(logits, **knobs, backend=backend)
    for _ in range(2):
        assert prepared(logits).equal(process_logits(logits, **knobs, backend=backend))
        ids += 1
        suppress += 1
