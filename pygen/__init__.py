"""pygen: compiled kernels for autoregressive decoding behind the Hugging Face `generate()` API."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# First of all: pygen._C takes its OpenMP runtime from the one that torch has loaded.
import torch as _torch  # noqa: F401

from pygen import candidates, ops, processors, rollout
from pygen.backends import BackendError, available_backends, build_info, use_backend
from pygen.batch.engine import Engine
from pygen.batch.generate_batch import generate_batch
from pygen.batch.handle import BatchHandle
from pygen.batch.results import BatchResult, BatchTimes
from pygen.config.config import (
    BaseWatermarkingConfig,
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from pygen.decode.constraints import Constraint, ConstraintListState, DisjunctiveConstraint, PhrasalConstraint
from pygen.decode.transition_scores import compute_transition_scores
from pygen.explain import Explanation, explain
from pygen.generate import generate
from pygen.graph.releasing import release
from pygen.integrations import torch_library as _torch_library  # noqa: F401
from pygen.integrations.transformers import custom_generate
from pygen.mixin import GenerationMixin
from pygen.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    KeptSets,
    TopLogprobs,
)
from pygen.patching import Patch, patch
from pygen.stopping.criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    validate_stopping_criteria,
)
from pygen.streamers.text import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer
from pygen.streaming import StreamEvent, stream
from pygen.watermark.bayesian import BayesianDetectorConfig, BayesianDetectorModel
from pygen.watermark.detectors import SynthIDTextWatermarkDetector, WatermarkDetector, WatermarkDetectorOutput

if _TYPE_CHECKING:
    from pygen.candidates import (
        AssistantToTargetTranslator,
        AssistantVocabTranslatorCache,
        AssistedCandidateGenerator,
        AssistedCandidateGeneratorDifferentTokenizers,
        CandidateGenerator,
        EarlyExitCandidateGenerator,
        PromptLookupCandidateGenerator,
        UniversalSpeculativeDecodingGenerator,
    )
    from pygen.processors import (
        AlternatingCodebooksLogitsProcessor,
        ClassifierFreeGuidanceLogitsProcessor,
        EncoderNoRepeatNGramLogitsProcessor,
        EncoderRepetitionPenaltyLogitsProcessor,
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        ExponentialDecayLengthPenalty,
        ForcedBOSTokenLogitsProcessor,
        ForcedEOSTokenLogitsProcessor,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
        LogitsProcessor,
        LogitsProcessorList,
        MinLengthLogitsProcessor,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        PrefixConstrainedLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        SynthIDTextWatermarkLogitsProcessor,
        TemperatureLogitsWarper,
        ThinkingBudgetLogitsProcessor,
        TopHLogitsWarper,
        TopKLogitsWarper,
        TopNSigmaLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
        UnbatchedClassifierFreeGuidanceLogitsProcessor,
        WatermarkLogitsProcessor,
    )

__version__ = "0.1.0"

__all__ = [
    "AlternatingCodebooksLogitsProcessor",
    "AssistantToTargetTranslator",
    "AssistantVocabTranslatorCache",
    "AssistedCandidateGenerator",
    "AssistedCandidateGeneratorDifferentTokenizers",
    "AsyncTextIteratorStreamer",
    "BackendError",
    "BaseStreamer",
    "BaseWatermarkingConfig",
    "BatchHandle",
    "BatchResult",
    "BatchTimes",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "CandidateGenerator",
    "ClassifierFreeGuidanceLogitsProcessor",
    "CompileConfig",
    "ConfidenceCriteria",
    "Constraint",
    "ConstraintListState",
    "DisjunctiveConstraint",
    "EarlyExitCandidateGenerator",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "Engine",
    "EosTokenCriteria",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "Explanation",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationMode",
    "InfNanRemoveLogitsProcessor",
    "KeptSets",
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "Patch",
    "PhrasalConstraint",
    "PrefixConstrainedLogitsProcessor",
    "PromptLookupCandidateGenerator",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "StreamEvent",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkLogitsProcessor",
    "SynthIDTextWatermarkingConfig",
    "TemperatureLogitsWarper",
    "TextIteratorStreamer",
    "TextStreamer",
    "ThinkingBudgetLogitsProcessor",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopLogprobs",
    "TopNSigmaLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "UniversalSpeculativeDecodingGenerator",
    "WatermarkDetector",
    "WatermarkDetectorOutput",
    "WatermarkLogitsProcessor",
    "WatermarkingConfig",
    "__version__",
    "available_backends",
    "build_info",
    "candidates",
    "compute_transition_scores",
    "custom_generate",
    "explain",
    "generate",
    "generate_batch",
    "ops",
    "patch",
    "processors",
    "release",
    "rollout",
    "stream",
    "use_backend",
    "validate_stopping_criteria",
]


def __getattr__(name: str) -> _Any:
    """The names of `pygen.processors` and `pygen.candidates`, looked up at their first use."""
    for module in (processors, candidates):
        if name in module.__all__:
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module 'pygen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
