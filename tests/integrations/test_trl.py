"""TRL: GRPO has the same tokens and losses with and without `rollout_func`, and the log-probabilities of its draws."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import pygen
from pygen.cli import smollm2
from pygen.integrations import trl as integration
from pygen.integrations.trl import rollout_func
from tests.clients import models
from tests.integrations.grpo import STEPS, Trained
from tests.test_docs import ROOT, blocks

# Of the 30 of SmolLM2: the test is about its tokenizer, its chat template and its vocabulary.
LAYERS = 2
PROMPTS = [f"w{number} w{number + 1} w{number + 3}"[: 6 + 3 * (number % 2)] for number in range(6)]
CHATS = [[{"role": "user", "content": f"Count to {number}."}] for number in range(3, 9)]


def recorded(rollouts: list[Any]) -> Any:
    """`rollout_func`, with what it returns kept in the list."""

    def func(prompts: list[Any], trainer: Any) -> Any:
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        rollouts.append((weights, rollout_func(prompts, trainer)))
        return rollouts[-1][1]

    return func


SETTINGS: dict[str, dict[str, Any]] = {"plain": {}, "filters": {"top_p": 0.8, "temperature": 0.7, "top_k": 20}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_are_those_without_it(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = Trained(models.model(), models.tokenizer(), PROMPTS, tmp_path, settings)
    rollouts: list[Any] = []
    ours = Trained(models.model(), models.tokenizer(), PROMPTS, tmp_path, settings, rollout_func=recorded(rollouts))
    assert len(ours.losses) == STEPS and ours.losses == plain.losses and any(ours.losses)
    assert ours.completions == plain.completions
    assert models.parameters(ours.model).equal(models.parameters(plain.model))
    assert (ours.kept[0] is not None) == bool(settings)
    for weights, rollout in rollouts:
        check_logprobs(weights, rollout, settings)


def check_logprobs(weights: dict[str, torch.Tensor], rollout: Any, settings: dict[str, Any]) -> None:
    """Asserts that every log-probability is that of the processed scores of one text alone."""
    model = models.model()
    model.load_state_dict(weights)
    for row, (prompt, completion) in enumerate(zip(rollout["prompt_ids"], rollout["completion_ids"], strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        if not settings:
            expected = logits.log_softmax(-1)
        else:
            expected = pygen.ops.process_logits(logits.detach(), **settings).log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
        assert rollout["logprobs"][row] == pytest.approx(chosen, abs=1e-4)
        if settings:
            kept = rollout["kept"][row]
            for step, token in enumerate(completion):
                survivors = kept.token_ids[kept.offsets[step] : kept.offsets[step + 1]].tolist()
                assert token in survivors and survivors == expected[step].isfinite().nonzero()[:, 0].tolist()


def test_chats_of_smollm2(tmp_path: Path) -> None:
    folder = smollm2.model_dir(progress=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")

    def trained(**more: Any) -> Trained:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=LAYERS)
        return Trained(model, tokenizer, CHATS, tmp_path, {"top_p": 0.9, "optim": "sgd"}, **more)

    plain, ours = trained(), trained(rollout_func=rollout_func)
    assert len(ours.losses) == STEPS and ours.losses == plain.losses and ours.completions == plain.completions
    assert all(len(kept) == 4 for kept in ours.kept)


def test_the_example_of_the_guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = smollm2.model_dir(progress=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=LAYERS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    for name, part in (("AutoModelForCausalLM", model), ("AutoTokenizer", tokenizer)):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda *_, part=part, **__: part)
    (example,) = [block for block in blocks(ROOT / "docs/guide/trl.md") if block.needs == "TRL"]
    namespace: dict[str, Any] = {}
    exec(compile(example.code, "trl.md", "exec"), namespace)
    assert namespace["trainer"].state.global_step == 1


def test_the_release_is_the_one_that_is_named() -> None:
    assert importlib.metadata.version("trl") == integration.TESTED
    assert f"TRL {integration.TESTED}" in (ROOT / "docs/guide/trl.md").read_text(encoding="utf-8")


class Fake:
    """The attributes of a trainer that a refusal reads."""

    tools: Any = None

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def _tokenize_prompts(self, prompts: Any) -> Any:
        return [[1, 2]], ["image"], {}


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match="`rollout_func` continues no turn after a tool's"):
        rollout_func(["w1"], Fake(tools=[print]))
    with pytest.raises(NotImplementedError, match="`rollout_func` takes prompts of text"):
        rollout_func(["w1"], Fake())
    monkeypatch.setitem(sys.modules, "trl.models", None)
    with pytest.raises(ImportError, match=f"`rollout_func` needs trl {integration.TESTED} or newer: pip install -U"):
        rollout_func(["w1"], Fake())
