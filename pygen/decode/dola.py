"""DoLa: greedy search and sampling from the difference between the last layer's scores and an earlier one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.dola_scores import candidate_layers, contrast
from pygen.decode.sample import generate_step_by_step
from pygen.models.adapter import ModelAdapter
from pygen.models.sharding import with_root_weights
from pygen.models.wrappers import inner
from pygen.ops import DecodeState
from pygen.outputs import GenerateOutput
from pygen.plan.pipeline import Chooser, StepResult, bind_plan
from pygen.plan.plan import make_plan


def generate_by_contrasting_layers(call: Call) -> Tensor | GenerateOutput:
    """DoLa (`dola_layers`): greedy search and sampling for decoder-only models with a head."""
    head, layers, plan = _head(call), _layers(call), make_plan(call)

    def bind(logits: Tensor, state: DecodeState) -> Chooser:
        contrasted = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        return ContrastChooser(bind_plan(plan, contrasted, state), call.adapter, head, layers)

    return generate_step_by_step(call, plan, bind, hidden_states=True)


class ContrastChooser:
    """A `Chooser` that is given the last layer's logits, and lets another choose from what `contrast` makes of them."""

    def __init__(
        self, choose: Chooser, model: ModelAdapter, head: Callable[[Tensor], Tensor], layers: Sequence[int]
    ) -> None:
        """head: states (rows, width) -> logits (rows, vocab_size). layers: those to contrast with."""
        self._choose = choose
        self._model = model
        self._head = head
        self._layers = layers

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        states = [layer[:, -1] for layer in self._model.take_hidden_states(self._layers)]
        # Copies of a prompt may have been read once.
        copies = logits.shape[0] // states[0].shape[0]
        early = (self._head(state).repeat_interleave(copies, dim=0) for state in states)
        return self._choose(contrast(logits, early), step)


def _head(call: Call) -> Callable[[Tensor], Tensor]:
    if call.adapter.is_encoder_decoder:
        raise ValueError(f"`dola_layers` must be None for {type(inner(call.model)).__name__}, which has an encoder")
    getter: Any = getattr(inner(call.model), "get_output_embeddings", lambda: None)
    head = getter()
    if head is None:
        raise ValueError(
            f"`dola_layers` must be None for {type(inner(call.model)).__name__}, which shows no head by "
            f"`get_output_embeddings`"
        )

    width = getattr(_text_config(call), "hidden_size", None)
    if None not in (width, read := getattr(head, "in_features", None)) and read != width:
        raise ValueError(
            f"`dola_layers` must be None for {type(inner(call.model)).__name__}, whose head reads {read} numbers where "
            f"its layers have {width}"
        )

    def logits_of(states: Tensor) -> Tensor:
        result: Tensor = with_root_weights(call.model, lambda: head(states))
        return result

    return logits_of


def _layers(call: Call) -> list[int]:
    is_tied = bool(getattr(getattr(inner(call.model), "config", None), "tie_word_embeddings", False))
    num_layers = getattr(_text_config(call), "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        name = type(inner(call.model)).__name__
        raise ValueError(f"`dola_layers` must be None for {name}, whose config has no `num_hidden_layers`")
    assert call.config.dola_layers is not None
    return candidate_layers(call.config.dola_layers, num_layers, tied=is_tied)


def _text_config(call: Call) -> Any:
    config: Any = getattr(inner(call.model), "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
