"""Generators of drafts for assisted decoding, under the names and signatures of transformers."""

from __future__ import annotations

from pygen.candidates.assistant import AssistedCandidateGenerator, EarlyExitCandidateGenerator
from pygen.candidates.base import CandidateGenerator
from pygen.candidates.prompt_lookup import PromptLookupCandidateGenerator
from pygen.candidates.translator import AssistantToTargetTranslator, AssistantVocabTranslatorCache
from pygen.candidates.universal import (
    AssistedCandidateGeneratorDifferentTokenizers,
    UniversalSpeculativeDecodingGenerator,
)

__all__ = [
    "AssistantToTargetTranslator",
    "AssistantVocabTranslatorCache",
    "AssistedCandidateGenerator",
    "AssistedCandidateGeneratorDifferentTokenizers",
    "CandidateGenerator",
    "EarlyExitCandidateGenerator",
    "PromptLookupCandidateGenerator",
    "UniversalSpeculativeDecodingGenerator",
]
