"""`patch`: replaces `generate` of a model or a class by pygen's, until it is undone."""

from __future__ import annotations

from torch import nn

from pygen.models.own_generate import unpatched
from pygen.models.patches import Patch, put_generate
from pygen.models.wrappers import base_of

__all__ = ["Patch", "patch"]


def patch(model: object) -> Patch:
    """Makes `model.generate(...)` pygen's, with transformers' parameters, also by position.

    model: a model, or a class of models (`LlamaForCausalLM`; `transformers.GenerationMixin` is all of them), whose
        instances and subclasses follow unless they have their own `generate`. A method `generate` of a model class
        that calls `super().generate(...)` stays in force when a base of that class is patched. A wrapper with its own
        `generate`, such as peft's models, keeps it: the inner model that it calls is patched.

    ```
    with pygen.patch(model):
        model.generate(**inputs, max_new_tokens=20)

    patched = pygen.patch(LlamaForCausalLM)
    patched.undo()
    ```

    A target may be patched several times and stays patched until all of its patches are undone; nothing is left behind
    then. Copies and pickles of a patched model are patched too, and `pygen.patch(copy).undo()` takes that off.

    TypeError for anything but a module, a class of modules, or a `GenerationMixin`. NotImplementedError for a model of
    transformers with its own `generate`, such as Whisper, which would be lost: patch a base of its class.
    """
    base = base_of(model)
    target = model if base is None else base
    _check(target)
    return put_generate(target)


def _check(target: object) -> None:
    kind = target if isinstance(target, type) else type(target)
    if not issubclass(kind, nn.Module) and not any(base.__name__ == "GenerationMixin" for base in kind.__mro__):
        raise TypeError(f"`model` must be a torch.nn.Module or a class of them, got {target!r:.80}")
    mixin = next((base for base in kind.__mro__ if base.__module__ == "transformers.generation.utils"), kind)
    if unpatched(kind, "generate") is not unpatched(mixin, "generate"):
        raise NotImplementedError(
            f"`model`={kind.__name__}: its own `generate` would be lost; patch a base of its class, for example "
            f"transformers.GenerationMixin"
        )
