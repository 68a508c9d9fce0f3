"""pygen: compiled kernels for autoregressive decoding behind the Hugging Face `generate()` API."""

from __future__ import annotations

# First of all: pygen._C takes its OpenMP runtime from the one that torch has loaded.
import torch as _torch  # noqa: F401

from pygen import candidates, ops, processors
from pygen._build import build_info
from pygen.backends import BackendError, available_backends, use_backend
from pygen.bayesian_detector import BayesianDetectorConfig, BayesianDetectorModel
from pygen.config import (
    BaseWatermarkingConfig,
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from pygen.constraints import Constraint, ConstraintListState, DisjunctiveConstraint, PhrasalConstraint
from pygen.explain import Explanation, explain
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
from pygen.releasing import release
from pygen.stopping import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    validate_stopping_criteria,
)
from pygen.streamers import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer
from pygen.streaming import StreamEvent, stream
from pygen.transition_scores import compute_transition_scores
from pygen.watermark_detectors import SynthIDTextWatermarkDetector, WatermarkDetector, WatermarkDetectorOutput

__version__ = "0.1.0"

__all__ = [
    "AsyncTextIteratorStreamer",
    "BackendError",
    "BaseStreamer",
    "BaseWatermarkingConfig",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "CompileConfig",
    "ConfidenceCriteria",
    "Constraint",
    "ConstraintListState",
    "DisjunctiveConstraint",
    "EosTokenCriteria",
    "Explanation",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationMode",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "Patch",
    "PhrasalConstraint",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "StreamEvent",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkingConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "TopLogprobs",
    "WatermarkDetector",
    "WatermarkDetectorOutput",
    "WatermarkingConfig",
    "__version__",
    "available_backends",
    "build_info",
    "candidates",
    "compute_transition_scores",
    "explain",
    "generate",
    "ops",
    "patch",
    "processors",
    "release",
    "stream",
    "use_backend",
    "validate_stopping_criteria",
]
