"""The outputs of `generate` for a model of transformers: subclasses of its classes, with pygen's additions."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers.generation import utils

from pygen import outputs

# Without types, because those of fields differ between releases of transformers.
_theirs: Any = utils
_HAS_CACHE = "cache" in {field.name for field in dataclasses.fields(_theirs.GenerateDecoderOnlyOutput)}


if _HAS_CACHE:

    class _Surface(outputs.GenerateOutput):
        CACHE_FIELD = "cache"
else:

    class _Surface(outputs.WithCacheName, outputs.GenerateOutput):  # type: ignore[no-redef]
        pass


class GenerateDecoderOnlyOutput(_Surface, _theirs.GenerateDecoderOnlyOutput):
    __doc__ = outputs.GenerateDecoderOnlyOutput.__doc__


class GenerateEncoderDecoderOutput(_Surface, _theirs.GenerateEncoderDecoderOutput):
    __doc__ = outputs.GenerateEncoderDecoderOutput.__doc__


class GenerateBeamDecoderOnlyOutput(_Surface, _theirs.GenerateBeamDecoderOnlyOutput):
    __doc__ = outputs.GenerateBeamDecoderOnlyOutput.__doc__


class GenerateBeamEncoderDecoderOutput(_Surface, _theirs.GenerateBeamEncoderDecoderOutput):
    __doc__ = outputs.GenerateBeamEncoderDecoderOutput.__doc__


# By (is_encoder_decoder, beams).
_CLASSES: dict[tuple[bool, bool], type[outputs.GenerateOutput]] = {
    (False, False): GenerateDecoderOnlyOutput,
    (True, False): GenerateEncoderDecoderOutput,
    (False, True): GenerateBeamDecoderOnlyOutput,
    (True, True): GenerateBeamEncoderDecoderOutput,
}
for _kind in _CLASSES.values():
    getattr(outputs, _kind.__name__).register(_kind)


def output_class(*, is_encoder_decoder: bool, beams: bool) -> type[outputs.GenerateOutput]:
    """The class of the output for a kind of model and search."""
    return _CLASSES[is_encoder_decoder, beams]
