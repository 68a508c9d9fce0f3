"""What a user may ask of a generation: `GenerationConfig`, its rules, its files and its types."""

from __future__ import annotations

from pygen.config.config import (
    DEFAULTS,
    BaseWatermarkingConfig,
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

__all__ = [
    "DEFAULTS",
    "BaseWatermarkingConfig",
    "CompileConfig",
    "GenerationConfig",
    "GenerationMode",
    "SynthIDTextWatermarkingConfig",
    "WatermarkingConfig",
]
