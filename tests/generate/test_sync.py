"""The loop's order: scalar reads per token, and the same results when it looks one step late."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pygen.backends import use_backend
from pygen.decode.sample import sample
from pygen.generate import generate
from tests.generate.models import FAMILIES, counting_table, hf_model
from tests.helpers.generation import generate_tokens

MODULE = sys.modules["pygen.decode.sample"]

SCALAR_READ = "aten::_local_scalar_dense"


class Reads(TorchDispatchMode):
    """Counts scalar reads and concatenations outside the model's forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.steps: list[int] = []
        self._inside = 0
        self._handles = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave),
        ]

    def _enter(self, *args: Any) -> None:
        self._inside += 1
        if self._inside == 1:
            self.steps.append(self.counts[SCALAR_READ])

    def _leave(self, *args: Any) -> None:
        self._inside -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self.steps.append(self.counts[SCALAR_READ])

    def per_token(self) -> list[int]:
        """Returns the reads between consecutive forwards, without the set-up."""
        return [b - a for a, b in zip(self.steps, self.steps[1:], strict=False)]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes `generate` launch the next forward before it reads the results, as on a GPU."""
    yield lambda: monkeypatch.setattr(MODULE, "sample", lambda *a, **k: sample(*a, **{**k, "ahead": a[0].can_rewind}))


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "seeded, every knob": {
        "do_sample": True,
        "seed": 3,
        "temperature": [0.5, 0.7, 1.0],
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 2,
        "suppress_tokens": [4, 5],
    },
    "rows finish": {"do_sample": True, "eos_token_id": list(range(40)), "pad_token_id": 0},
    "everything kept": {
        "do_sample": True,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_logprobs": True,
        "top_logprobs": 2,
    },
    "invalid rows end": {"on_invalid": "eos", "eos_token_id": [3, 4], "pad_token_id": 0},
    "criteria": {"stopping_criteria": [lambda ids, scores: ids[:, -1] < 30], "pad_token_id": 0, "eos_token_id": 1},
    "processors": {"do_sample": True, "logits_processor": [lambda ids, scores: scores * 1.5]},
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_one_scalar_read_per_token(name: str, late: bool, ahead: Callable[[], None]) -> None:
    if late:
        ahead()
    model = hf_model("llama")
    ids = torch.randint(4, 100, (3, 4), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with use_backend("cpu"), Reads(model) as reads:
        result: Any = generate(model, ids, max_new_tokens=8, **SETTINGS[name])
    tokens = (result if isinstance(result, Tensor) else result.sequences).shape[1] - 4
    between = reads.per_token()
    assert sum(between) == tokens
    # A late look reads nothing between the prefill and the second forward, and two steps after the last one.
    assert max(between[:-1], default=0) <= 1, between
    assert between[0] == (0 if late else 1)
    assert reads.counts["aten::cat"] <= 3, "inputs are grown once, not per token"


def test_kept_tokens_are_read_at_the_end_only() -> None:
    model = hf_model("llama")
    settings: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "return_dict_in_generate": True, "output_kept": True}
    with use_backend("cpu"), Reads(model) as reads:
        generate(model, torch.tensor([[5, 6], [7, 8]]), max_new_tokens=8, **settings)
    assert reads.per_token()[:-1] == [1] * 7


def run_both(ahead: Callable[[], None], call: Callable[[], Any]) -> tuple[Any, Any]:
    torch.manual_seed(4)
    first = call(), torch.get_rng_state()
    ahead()
    torch.manual_seed(4)
    second = call(), torch.get_rng_state()
    assert torch.equal(first[1], second[1])
    return first[0], second[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_looking_late_changes_nothing(family: str, name: str, ahead: Callable[[], None]) -> None:
    ids = torch.randint(4, 100, (3, 4), generator=torch.Generator().manual_seed(1))
    settings = {"return_dict_in_generate": True, "max_new_tokens": 10, **SETTINGS[name]}
    call = functools.partial(generate, hf_model(family), ids, **settings)
    now, late = run_both(ahead, call)
    assert torch.equal(now.sequences, late.sequences)
    assert now.finish_reason == late.finish_reason
    assert now.past_key_values.get_seq_length() == late.past_key_values.get_seq_length() == now.sequences.shape[1] - 1
    for x, y in zip(now.past_key_values, late.past_key_values, strict=True):
        assert torch.equal(x[0], y[0])


def test_every_step_a_row_may_end_at(ahead: Callable[[], None]) -> None:
    ahead()
    for end in range(2, 9):
        model = counting_table()
        drawn = generate_tokens(model, torch.tensor([[1]]), eos_token_id=end, max_new_tokens=8)
        assert drawn.tolist() == [list(range(1, end + 1))]
        # The loop launched one forward too many, unless the length ended the text.
        assert len(model.calls) == min(end, 8)


def test_a_late_look_raises_for_the_right_step(ahead: Callable[[], None]) -> None:
    model = counting_table()
    model.table[5, 3] = float("nan")
    ahead()
    with pytest.raises(RuntimeError, match="scores of row 0 at step 2 hold NaN, first at token id 3"):
        generate(model, torch.tensor([[3]]), max_new_tokens=6)


def test_recorded_states_of_a_forward_too_many_are_dropped(ahead: Callable[[], None]) -> None:
    ids = torch.tensor([[5, 6, 7]])
    settings: dict[str, Any] = {"return_dict_in_generate": True, "output_hidden_states": True, "max_new_tokens": 10}
    call = functools.partial(generate, hf_model("llama"), ids, eos_token_id=list(range(60)), pad_token_id=0, **settings)
    now, late = run_both(ahead, call)
    assert len(now.hidden_states) == len(late.hidden_states) == now.sequences.shape[1] - 3 < 10


def test_tokens_stream_in_order_when_looking_late(ahead: Callable[[], None]) -> None:
    ahead()
    seen: list[Tensor] = []

    class Collect:
        def put(self, value: Tensor) -> None:
            seen.append(value)

        def end(self) -> None:
            seen.append(torch.tensor(-1))

    generate(counting_table(), torch.tensor([[1], [2]]), max_new_tokens=3, streamer=Collect())
    assert [v.tolist() for v in seen] == [[[1], [2]], [2, 3], [3, 4], [4, 5], -1]
