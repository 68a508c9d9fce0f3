"""pygen: compiled kernels for autoregressive decoding behind the Hugging Face `generate()` API."""

from __future__ import annotations

# First of all: pygen._C takes its OpenMP runtime from the one that torch has loaded.
import torch as _torch  # noqa: F401

from pygen import ops
from pygen._build import build_info
from pygen.backends import BackendError, available_backends, use_backend
from pygen.bayesian_detector import BayesianDetectorConfig, BayesianDetectorModel
from pygen.config import (
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from pygen.generate import generate
from pygen.mixin import GenerationMixin
from pygen.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    TopLogprobs,
)
from pygen.patching import Patch, patch
from pygen.streamers import BaseStreamer, TextStreamer
from pygen.transition_scores import compute_transition_scores
from pygen.watermark_detectors import SynthIDTextWatermarkDetector, WatermarkDetector, WatermarkDetectorOutput

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BaseStreamer",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "CompileConfig",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationMode",
    "Patch",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkingConfig",
    "TextStreamer",
    "TopLogprobs",
    "WatermarkDetector",
    "WatermarkDetectorOutput",
    "WatermarkingConfig",
    "__version__",
    "available_backends",
    "build_info",
    "compute_transition_scores",
    "generate",
    "ops",
    "patch",
    "use_backend",
]
