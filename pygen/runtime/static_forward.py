"""The forward of a captured step: a model of transformers over inputs and a cache that stay where they are."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.integrations.inputs import GrowingInputs, tail_logits
from pygen.runtime.static_cache import StaticCache

if TYPE_CHECKING:
    from pygen.integrations.transformers import TransformersAdapter


class StaticForward:
    """`run()` reads one token per row and leaves the scores of the next in `logits`.

    Everything that changes from step to step is changed on the device, by the forward itself: the cache's length, and
    the positions. So the forward may be captured and replayed, once for each step.

        logits = model(token_ids, mask, positions, cache);  positions += 1

    cache: of `rows` and `capacity`. logits: (rows, vocab_size), where the last run left them.
    Nothing here keeps the model alive.
    """

    def __init__(
        self, adapter: TransformersAdapter, cache: StaticCache, compile_options: dict[str, Any] | None
    ) -> None:
        """`adapter` has read a prompt with `cache`."""
        self.cache = cache
        self.logits = torch.empty(0)
        self._hooks = weakref.ref(adapter.hooks)
        self._call = _call if compile_options is None else torch.compile(_call, **compile_options)
        kwargs, growing = adapter.decode_arguments()
        self._kwargs = {name: value for name, value in kwargs.items() if value is not cache}
        self._cache_name = next(name for name, value in kwargs.items() if value is cache)
        self._mask: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}
        for name, value in growing.at(1).items():
            if _is_mask(name):
                self._mask[name] = value.new_ones((value.shape[0], cache.capacity))
            else:
                self._current[name] = value.clone(memory_format=torch.contiguous_format)

    def begin(self, growing: GrowingInputs, generated: int, length: int) -> None:
        """Stands so that the next run reads the newest of `generated` tokens, of a text of `length` positions before
        it."""
        self.cache.set_length(length)
        for name, value in growing.after(0).items():
            if _is_mask(name):
                self._mask[name].fill_(1)[:, : value.shape[1]] = value
        for name, value in growing.at(generated).items():
            if not _is_mask(name):
                self._current[name].copy_(value)

    def run(self, token_ids: Tensor) -> None:
        """`token_ids`: (rows,) int64."""
        self.logits = self.logits_after(token_ids)

    def logits_after(self, token_ids: Tensor) -> Tensor:
        """What `run` leaves in `logits`, which stay as they are."""
        hooks = self._hooks()
        assert hooks is not None
        kwargs = {**self._kwargs, **self._mask, **self._current, self._cache_name: self.cache}
        with hooks._optimize_model_for_decode():
            ids = token_ids[:, None]
            inputs = hooks.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs)
            outputs = self._call(hooks, inputs)
        for name, value in self._current.items():
            if name.endswith("position_ids"):
                value.add_(1)
        return tail_logits(outputs.logits, token_ids.shape[0], 1, token_ids.device)[:, 0]


def _call(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs, return_dict=True)


def _is_mask(name: str) -> bool:
    return name.endswith("attention_mask")


def fixed_arguments(adapter: TransformersAdapter) -> tuple[Any, ...]:
    """What of the forward's arguments a capture keeps as it is: calls that differ in it cannot share one."""
    kwargs, growing = adapter.decode_arguments()
    values = [(name, repr(value)) for name, value in sorted(kwargs.items()) if name != "past_key_values"]
    shapes = [(name, str(value.dtype), tuple(value.shape[:-1])) for name, value in sorted(growing.at(1).items())]
    return (*values, *shapes)
