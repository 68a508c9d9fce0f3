"""Offloaded, prepared, wrapped and patched models generate the plain model's tokens."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import pygen
from pygen.models.devices import execution_device, input_device
from pygen.models.read_only import ReadOnlyModel
from tests.generate.models import CachedModel, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])
SETTINGS: list[dict[str, Any]] = [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}]


def tokens(model: Any, inputs: Tensor | None = IDS, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    return generate_tokens(model, inputs, max_new_tokens=5, **settings)


class TestOffloaded:
    """accelerate stores the weights elsewhere and loads them for each layer's forward."""

    @pytest.fixture(params=["cpu_offload", "disk_offload", "dispatch_model", "cpu_offload_with_hook"])
    def offloaded(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        model = copy.deepcopy(hf_model("llama"))
        if request.param == "cpu_offload":
            return accelerate.cpu_offload(model, execution_device="cpu")
        if request.param == "disk_offload":
            return accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
        if request.param == "dispatch_model":
            places = {"model": "disk", "lm_head": "cpu"}
            return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path))
        return accelerate.cpu_offload_with_hook(model, execution_device="cpu")[0]

    def test_tokens(self, offloaded: Any) -> None:
        for settings in SETTINGS:
            assert tokens(offloaded, **settings).equal(tokens(hf_model("llama"), **settings))
        start: dict[str, Any] = {"inputs": None, "bos_token_id": 4}
        assert tokens(offloaded, **start).equal(tokens(hf_model("llama"), **start))
        assert execution_device(offloaded) == torch.device("cpu") and input_device(offloaded) is None

    def test_as_assistant(self, offloaded: Any) -> None:
        assert tokens(hf_model("llama"), assistant_model=offloaded).equal(tokens(hf_model("llama")))

    def test_encoder(self, tmp_path: Path) -> None:
        model = accelerate.cpu_offload(copy.deepcopy(encoder_decoder("t5")), execution_device="cpu")
        start: dict[str, Any] = {"decoder_start_token_id": 1}
        assert tokens(model, **start).equal(tokens(encoder_decoder("t5"), **start))

    def test_plain_module(self) -> None:
        torch.manual_seed(0)
        model = CachedModel().eval()
        expected = tokens(model)
        assert tokens(accelerate.cpu_offload(model, execution_device="cpu")).equal(expected)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_prepared(precision: str) -> None:
    model = accelerate.Accelerator(cpu=True, mixed_precision=precision).prepare(copy.deepcopy(hf_model("llama")))
    for settings in SETTINGS:
        torch.manual_seed(0)
        mask = torch.ones_like(IDS)
        expected = model.generate(IDS, attention_mask=mask, max_new_tokens=5, pad_token_id=0, **settings)
        assert tokens(model, attention_mask=mask, pad_token_id=0, **settings).equal(expected)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrapped_for_training(wrap: Callable[[Any], Any]) -> None:
    for model in (hf_model("llama"), CachedModel().eval()):
        with torch.compiler.set_stance("force_eager"):
            assert tokens(wrap(model).eval()).equal(tokens(model))


class Prompted(nn.Module):
    """Prepends a token to every prompt, and only its own `generate` does so."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, input_ids: Tensor) -> Any:
        raise AssertionError("nothing but `generate` is called")

    def generate(self, **kwargs: Any) -> Any:
        input_ids = kwargs.pop("input_ids")
        return self.base_model.generate(
            input_ids=torch.cat((torch.full_like(input_ids[:, :1], 4), input_ids), 1), **kwargs
        )


class TestOwnGenerate:
    @pytest.fixture
    def base(self) -> Any:
        return copy.deepcopy(hf_model("llama"))

    @pytest.mark.parametrize("settings", [*SETTINGS, {"seed": 3, "do_sample": True}])
    @pytest.mark.parametrize(
        "wrap", [Prompted, lambda model: Prompted(torch.compile(model)), lambda m: nn.DataParallel(Prompted(m))]
    )
    def test_generate(self, settings: dict[str, Any], wrap: Callable[[Any], Any], base: Any) -> None:
        expected = tokens(base, torch.tensor([[4, 5, 6, 7], [4, 8, 9, 3]]), **settings)
        with torch.compiler.set_stance("force_eager"):
            assert tokens(wrap(base), **settings).equal(expected)
        assert "generate" not in vars(base)

    def test_patch(self, base: Any) -> None:
        wrapper, expected = Prompted(base), tokens(Prompted(base), seed=3, do_sample=True)
        with pygen.patch(wrapper):
            assert wrapper.generate(input_ids=IDS, max_new_tokens=5, seed=3, do_sample=True).equal(expected)
            assert tokens(wrapper, seed=3, do_sample=True).equal(expected)
        assert "generate" not in vars(base) | vars(wrapper)
        with pygen.patch(Prompted):
            assert tokens(wrapper, seed=3, do_sample=True).equal(expected)
            assert wrapper.generate(input_ids=IDS, max_new_tokens=5, seed=3, do_sample=True).equal(expected)

    def test_errors_undo_the_patch(self, base: Any) -> None:
        with pytest.raises(ValueError, match="top_p"):
            tokens(Prompted(base), do_sample=True, top_p=2.0)
        assert "generate" not in vars(base)

    def test_streamer_ends_once(self, base: Any) -> None:
        class Streamer(pygen.BaseStreamer):
            calls: list[str] = []

            def put(self, value: Tensor) -> None:
                self.calls.append("put")

            def end(self) -> None:
                self.calls.append("end")

        streamer = Streamer()
        tokens(Prompted(base), IDS[:1], streamer=streamer)
        assert streamer.calls == ["put"] * 6 + ["end"]
        assert [event.token_id for event in pygen.stream(Prompted(base), IDS[:1], max_new_tokens=5)] == (
            tokens(Prompted(base), IDS[:1])[0, 4:].tolist()
        )

    def test_threads(self, base: Any) -> None:
        wrapper = Prompted(base)
        results: list[Tensor] = []
        expected = tokens(wrapper, seed=1, do_sample=True)

        def work() -> None:
            results.extend(generate_tokens(wrapper, IDS, max_new_tokens=5, seed=1, do_sample=True) for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 20 and all(result.equal(expected) for result in results)
        assert "generate" not in vars(base)


def test_hooks_that_know_the_rows() -> None:
    """Hooks like peft's, which choose an adapter for each row: every forward has one row per returned row."""
    rows: list[int] = []
    model = copy.deepcopy(hf_model("llama"))
    model.lm_head.register_forward_pre_hook(lambda module, arguments: rows.append(arguments[0].shape[0]))
    for settings in SETTINGS[1:]:
        rows.clear()
        assert tokens(model, **settings).equal(tokens(hf_model("llama"), **settings))
        assert len(set(rows)) == 1


def test_a_hook_writes_to_a_stand_in() -> None:
    model = hf_model("llama")
    stand_in = ReadOnlyModel(model, hidden=("config",))
    assert isinstance(stand_in, type(model)) and not hasattr(stand_in, "config")
    stand_in.config = 3
    assert stand_in.config == 3 and model.config is not stand_in.config
    assert stand_in.get_input_embeddings() is model.get_input_embeddings()
    assert stand_in.generate.__self__ is stand_in and stand_in.device == model.device
    # Another test may have left these attributes on the shared model.
    of_the_hook = ("_cache", "_previous_max_cache_length")
    before = [vars(model).pop(name, None) for name in of_the_hook]
    assert tokens(model, cache_implementation="static").equal(tokens(model))
    assert not set(of_the_hook) & vars(model).keys(), before
