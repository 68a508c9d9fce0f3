"""Logits processors under the names and signatures of transformers, for any loop over (input_ids, scores).

They may be mixed with transformers' own and with plain callables. Scores keep their dtype; no gradient passes through
those that call an op.
"""

from __future__ import annotations

from pygen.processors.bans import (
    AlternatingCodebooksLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from pygen.processors.base import LogitsProcessor, LogitsProcessorList
from pygen.processors.bias import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor
from pygen.processors.forced import ForcedBOSTokenLogitsProcessor, ForcedEOSTokenLogitsProcessor
from pygen.processors.guidance import (
    ClassifierFreeGuidanceLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from pygen.processors.numeric import InfNanRemoveLogitsProcessor, LogitNormalization
from pygen.processors.penalties import (
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    RepetitionPenaltyLogitsProcessor,
)
from pygen.processors.prefix import PrefixConstrainedLogitsProcessor
from pygen.processors.thinking import ThinkingBudgetLogitsProcessor
from pygen.processors.warpers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopNSigmaLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from pygen.processors.watermark import SynthIDTextWatermarkLogitsProcessor, WatermarkLogitsProcessor

__all__ = [
    "AlternatingCodebooksLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "TemperatureLogitsWarper",
    "ThinkingBudgetLogitsProcessor",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopNSigmaLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "WatermarkLogitsProcessor",
]
