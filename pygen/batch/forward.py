"""The forwards of a batch whose rows are of different lengths, through the hooks of a model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
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

    kinds: of the layers, as `WindowCache` takes them. device: where token ids are expected.
    longest: positions beyond which rows would change each other's embeddings; None without such a limit.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises NotImplementedError with the reason, by name, for a model whose rows cannot come and go."""
        refuse(model)
        self._model, self._hooks = called(model), inner(model)
        self._names = HookNames(self._hooks)
        parameters = inspect.signature(self._hooks.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._constant: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in parameters:
            self._constant["logits_to_keep"] = 1
        self.kinds = layer_kinds(self._hooks.config)
        self.device = input_device(self._hooks) or torch.device("cpu")
        self.longest = _longest(self._hooks.config)

    def read(self, cache: WindowCache, token_ids: Tensor, lengths: Sequence[int], *, is_prompt: bool = False) -> Tensor:
        """Reads the same number of tokens for every row, and returns the logits after the last, (rows, vocab_size).

        token_ids: (rows, count) int64. lengths: positions of every row in the cache so far.
        """
        rows, count = token_ids.shape
        cache.use_rows(rows)
        inputs = {**self._constant, self._names.argument: cache}
        inputs["attention_mask"] = masks([length + count for length in lengths], cache.length + count, token_ids.device)
        if self._takes_positions:
            first = torch.tensor(lengths, device=token_ids.device)
            inputs["position_ids"] = first[:, None] + torch.arange(count, device=token_ids.device)
        inputs = self._hooks.prepare_inputs_for_generation(
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
