"""Generators of drafts for assisted decoding, under the names and signatures of transformers."""

from __future__ import annotations

from pygen.candidates.assistant import AssistedCandidateGenerator, EarlyExitCandidateGenerator
from pygen.candidates.base import CandidateGenerator
from pygen.candidates.prompt_lookup import PromptLookupCandidateGenerator

__all__ = [
    "AssistedCandidateGenerator",
    "CandidateGenerator",
    "EarlyExitCandidateGenerator",
    "PromptLookupCandidateGenerator",
]
