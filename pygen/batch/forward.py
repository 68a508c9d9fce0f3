"""The forwards of a batch whose rows are of different lengths, through the hooks of a model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pygen.batch.window_cache import WindowCache, masks
from pygen.graph.cache_refusals import layer_kinds, layers_refusal
from pygen.models.devices import input_device
from pygen.models.inputs import tail_logits
from pygen.models.transformers_inputs import is_default, preparer
from pygen.models.versions import HookNames
from pygen.models.wrappers import called, inner, mixin_of

# Rotary embeddings whose frequencies depend on the longest text of the batch.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class BatchForward:
    """Runs `model` over a `WindowCache`.

    hooks: the model inside its wrappers. kinds: of the layers, as `WindowCache` takes them.
    device: where token ids are expected.
    longest: positions beyond which rows would change each other's embeddings; None without such a limit.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises NotImplementedError with the reason, by name, for a model whose rows cannot come and go."""
        refuse(model)
        self._model, self.hooks = called(model), inner(model)
        self._names = HookNames(self.hooks)
        parameters = inspect.signature(self.hooks.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._constant: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in parameters:
            self._constant["logits_to_keep"] = 1
        self.kinds = layer_kinds(self.hooks.config)
        self.device = input_device(self.hooks) or torch.device("cpu")
        self.longest = _longest(self.hooks.config)

    def reason_against_capture(self) -> str | None:
        """Why the forward cannot be captured, the first reason there is."""
        from pygen.graph.cache_refusals import refusal
        from pygen.graph.eligibility import reason_of_model

        return reason_of_model(self._model, self.device) or refusal(self.hooks)

    def read(self, cache: WindowCache, token_ids: Tensor, lengths: Sequence[int], *, is_prompt: bool = False) -> Tensor:
        """Reads the same number of tokens for every row, and returns the logits after the last, (rows, vocab_size).

        token_ids: (rows, count) int64. lengths: positions of every row in the cache so far.
        """
        count, device = token_ids.shape[1], token_ids.device
        mask = masks([length + count for length in lengths], cache.length + count, device)
        positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(count, device=device)
        return self.run(cache, token_ids, mask, positions, is_prompt=is_prompt)

    def run(self, cache: Any, token_ids: Tensor, mask: Tensor, positions: Tensor, *, is_prompt: bool = False) -> Tensor:
        """The forward itself. It reads no tensor on the host.

        mask: (rows, columns of the cache, and of `token_ids`) int64. positions: of `token_ids`.
        """
        rows, count = token_ids.shape
        inputs = {**self._constant, self._names.argument: cache, "attention_mask": mask}
        if self._takes_positions:
            inputs["position_ids"] = positions
        with nullcontext() if is_prompt else self.hooks._optimize_model_for_decode():
            inputs = self.hooks.prepare_inputs_for_generation(
                token_ids, next_sequence_length=count, is_first_iteration=is_prompt, **inputs
            )
            outputs = self._model(**self._names.for_forward(inputs), return_dict=True)
        return tail_logits(outputs.logits, rows, 1, token_ids.device)[:, 0]


def refuse(model: nn.Module) -> None:
    """NotImplementedError for a model whose rows cannot come and go, with the reason."""
    hooks = inner(model)
    name = type(hooks).__name__
    reason = None
    if mixin_of(hooks) != "transformers":
        reason = f"{name} is not a generation model of transformers"
    elif hooks.config.is_encoder_decoder:
        reason = f"{name} is an encoder-decoder, and rows share no encoder's output"
    elif (reason := layers_refusal(hooks)) is None:
        if not is_default(hooks, "_update_model_kwargs_for_generation"):
            reason = f"{name} extends its inputs by its own `_update_model_kwargs_for_generation`"
        elif (owner := preparer(hooks)) is not None:
            reason = f"{type(owner).__name__} prepares the inputs of {name}"
        elif "attention_mask" not in inspect.signature(hooks.forward).parameters:
            reason = f"the forward of {name} takes no `attention_mask`, which tells rows of different lengths apart"
    if reason is not None:
        raise NotImplementedError(f"`model`: its rows cannot come and go, because {reason}; `pygen.generate` runs it")


def _longest(config: Any) -> int | None:
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # Gemma 3 has one set of parameters for each kind of layer.
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    limits = [
        one.get("original_max_position_embeddings") or text.max_position_embeddings
        for one in sets
        if one.get("rope_type", one.get("type")) in _LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=None)
