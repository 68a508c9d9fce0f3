"""peft: `pygen.generate` and `pygen.patch` with its models return what transformers returns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import pygen
from pygen.graph.cuda_graph import CAPTURES
from tests.clients import models
from tests.generate.models import encoder_decoder
from tests.helpers.generation import generate_tokens
from tests.runtime.captures import PlainCalls

IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}
KINDS = ("lora", "lora without a task", "lora mixed", "prefix", "prompt", "p-tuning")


def wrapped(kind: str, model: Any) -> Any:
    is_t5 = model.config.is_encoder_decoder
    task = {"task_type": "SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM"}
    layers = {"r": 4, "target_modules": ["q", "v"] if is_t5 else ["q_proj", "v_proj"]}
    torch.manual_seed(1)
    if kind == "prefix":
        result = peft.get_peft_model(model, peft.PrefixTuningConfig(num_virtual_tokens=4, **task))
    elif kind == "prompt":
        result = peft.get_peft_model(model, peft.PromptTuningConfig(num_virtual_tokens=4, **task))
    elif kind == "p-tuning":
        config = peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **task)
        result = peft.get_peft_model(model, config)
    elif kind == "lora without a task":
        result = peft.get_peft_model(model, peft.LoraConfig(**layers))
    else:
        config = peft.LoraConfig(**layers, **task)
        result = peft.get_peft_model(model, config, mixed=kind == "lora mixed")
        result.add_adapter("other", config)
    # Fresh adapters have no effect, so change their weights.
    for name, parameter in result.named_parameters():
        if "lora" in name or "prompt" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return result.eval()


def tokens(function: Any, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    mask = (IDS != 0).long()
    result: Tensor = function(input_ids=IDS, attention_mask=mask, max_new_tokens=7, pad_token_id=0, **settings)
    return result


def base_of(model: Any) -> Any:
    return next(module for module in model.modules() if type(module).__name__.startswith(("Llama", "T5For")))


def assert_as_transformers(model: Any, **settings: Any) -> None:
    expected = tokens(model.generate, **settings)
    assert tokens(lambda **kwargs: pygen.generate(model, **kwargs), **settings).equal(expected)
    with pygen.patch(model):
        assert tokens(model.generate, **settings).equal(expected)
        seeded = tokens(model.generate, seed=5, **settings)
    assert tokens(lambda **kwargs: pygen.generate(model, seed=5, **kwargs), **settings).equal(seeded)
    assert "generate" not in vars(base_of(model))


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", SETTINGS)
def test_as_transformers(family: str, kind: str, call: str) -> None:
    base = models.model() if family == "llama" else copy.deepcopy(encoder_decoder("t5"))
    model, settings = wrapped(kind, copy.deepcopy(base)), SETTINGS[call]
    if family == "t5":
        settings = settings | {"decoder_start_token_id": 1}
    assert_as_transformers(model, **settings)
    assert not tokens(model.generate, **settings).equal(tokens(base.generate, **settings))


@pytest.mark.parametrize("call", [{}, {"do_sample": True}, {"num_beams": 3}])
def test_an_adapter_for_each_row(call: dict[str, Any]) -> None:
    model = wrapped("lora", models.model())
    assert_as_transformers(model, adapter_names=["other", "default"], **call)


def test_threads() -> None:
    """During a call, peft puts its hooks on the inner model."""
    prompted, adapted = wrapped("prompt", models.model()), wrapped("lora", models.model())
    jobs: list[Callable[[], Tensor]] = [
        lambda: generate_tokens(prompted, IDS, max_new_tokens=6, pad_token_id=0),
        lambda: generate_tokens(adapted, IDS, max_new_tokens=6, pad_token_id=0),
        lambda: generate_tokens(adapted, IDS, max_new_tokens=6, pad_token_id=0, adapter_names=["other", "default"]),
    ]
    expected = [job() for job in jobs] * 12
    with ThreadPoolExecutor(6) as pool:
        results = [future.result() for future in [pool.submit(job) for job in jobs * 12]]
    assert all(ours.equal(theirs) for ours, theirs in zip(results, expected, strict=True))


def test_adapters_are_switched() -> None:
    model = wrapped("lora", models.model())
    seen = []
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert_as_transformers(model)
        seen.append(tokens(lambda **kwargs: pygen.generate(model, **kwargs)))
    with model.disable_adapter():
        assert_as_transformers(model)
    assert seen[0].equal(seen[2]) and not seen[0].equal(seen[1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_read_once(kind: str) -> None:
    model, lengths = wrapped(kind, models.model()), []
    layer = base_of(model).model.layers[0]
    layer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    tokens(lambda **kwargs: pygen.generate(model, **kwargs))
    assert lengths[1:] == [1] * 6


def test_refusals() -> None:
    model, drafts = wrapped("prefix", models.model()), models.model()
    for settings in ({"prefill_chunk_size": 2}, {"cache_implementation": "static"}, {"assistant_model": drafts}):
        with pytest.raises(NotImplementedError, match="PeftModelForCausalLM prepares the inputs"):
            tokens(lambda **kwargs: pygen.generate(model, **kwargs), **settings)
        assert "generate" not in vars(base_of(model))
    assert_as_transformers(model)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_no_step_is_captured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPTURES, "cpu", PlainCalls)
    reason = {"lora": "q_proj` is a layer of peft", "prefix": "PeftModelForCausalLM prepares the inputs"}[kind]
    with pytest.raises(pygen.BackendError, match=reason):
        tokens(lambda **kwargs: pygen.generate(wrapped(kind, models.model()), **kwargs), runtime="graph")


def test_as_assistant() -> None:
    model, expected = models.model(), tokens(models.model().generate)
    for kind in ("lora", "prefix"):
        assistant = wrapped(kind, models.model())
        assert tokens(lambda **kwargs: pygen.generate(model, **kwargs), assistant_model=assistant).equal(expected)


def _sharded(model: Any) -> Any:
    for layer in base_of(model).model.layers:
        fully_shard(layer)
    return fully_shard(model)


def _flattened(model: Any) -> Any:
    policy = ModuleWrapPolicy({type(base_of(model).model.layers[0])})
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))


@pytest.mark.parametrize("wrap", [_sharded, _flattened, torch.compile])
@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_wrapped_again(wrap: Callable[[Any], Any], kind: str, tmp_path: Path) -> None:
    """The weights outside the layers belong to a wrapper whose forward `generate` does not run."""
    expected = tokens(wrapped(kind, models.model()).generate)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = wrap(wrapped(kind, models.model()))
        for _ in range(2):
            assert tokens(lambda **kwargs: pygen.generate(model, **kwargs)).equal(expected)
    finally:
        dist.destroy_process_group()
