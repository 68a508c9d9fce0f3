"""Detectors of watermarked texts: a z-test for green lists, a trained classifier for SynthID-Text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pygen.config.watermark import WatermarkingConfig, watermarking_config_from
from pygen.processors.watermark import SynthIDTextWatermarkLogitsProcessor
from pygen.request.protocols import HasEosTokenId, HasVocabSize
from pygen.rules import integer, number, shown
from pygen.watermark.bayesian import BayesianDetectorModel

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray


@dataclass
class WatermarkDetectorOutput:
    """The findings of `WatermarkDetector`, one number per text: arrays (batch_size,) float64, `prediction` bool.

    num_tokens_scored: the number of n-grams that count, T.
    num_green_tokens: the number of these that end in a green token, G.
    green_fraction: G / T.
    z_score: (G - ratio T) / sqrt(T ratio (1 - ratio)), in standard deviations above the mean without a watermark.
    p_value: the probability of such a z-score or a higher one in a text without a watermark.
    prediction: z_score > z_threshold.
    confidence: 1 - p_value.
    """

    num_tokens_scored: NDArray[float64] | None = None
    num_green_tokens: NDArray[float64] | None = None
    green_fraction: NDArray[float64] | None = None
    z_score: NDArray[float64] | None = None
    p_value: NDArray[float64] | None = None
    prediction: NDArray[bool_] | None = None
    confidence: NDArray[float64] | None = None


class WatermarkDetector:
    """Counts the green tokens of a text (Kirchenbauer et al., 2023, arXiv:2306.04634, equation 3).

    model_config: has `vocab_size` and the token that may start a text: `bos_token_id`, or `decoder_start_token_id` of
        an encoder-decoder model.
    device: the kind of device that generated the text.
    watermarking_config: the config of the generation, or a dict of its fields.
    ignore_repeated_ngrams: counts an n-gram once however often it occurs; repetition isn't a sign of a watermark.
    max_cache_size: the number of n-grams that a cache holds between calls.

    Raises `ValueError` for arguments out of range and `TypeError` for another kind of config.
    """

    def __init__(
        self,
        model_config: HasVocabSize,
        device: str | torch.device,
        watermarking_config: WatermarkingConfig | dict[str, object],
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ) -> None:
        config = watermarking_config_from(watermarking_config)
        if not isinstance(config, WatermarkingConfig):
            raise TypeError(
                f"`watermarking_config` must be a WatermarkingConfig or a dict of its fields, "
                f"got {type(config).__name__}"
            )
        if not integer(0).accepts(max_cache_size):
            raise ValueError(f"`max_cache_size` must be {integer(0).allowed}, got {shown(max_cache_size)}")
        is_encoder_decoder = getattr(model_config, "is_encoder_decoder", False)
        self.bos_token_id = getattr(
            model_config, "decoder_start_token_id" if is_encoder_decoder else "bos_token_id", None
        )
        self.greenlist_ratio = config.greenlist_ratio
        self.ignore_repeated_ngrams = ignore_repeated_ngrams
        self.processor = config.construct_processor(model_config.vocab_size, device)
        self.processor.cache_size = max_cache_size

    def __call__(
        self, input_ids: Tensor, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | NDArray[bool_]:
        """Predictions (batch_size,) bool for texts `input_ids` (batch_size, length); leave their prompts out.

        If the first text begins with the start token, the detector drops the first column.
        `return_dict=True` returns all findings. Raises `ValueError` for texts without a token after the first
        `context_width`.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"`input_ids` must have shape (batch_size, length), got {tuple(input_ids.shape)}")
        if not number().accepts(z_threshold):
            raise ValueError(f"`z_threshold` must be {number().allowed}, got {shown(z_threshold)}")
        input_ids = input_ids.cpu()
        if input_ids.numel() and input_ids[0, 0] == self.bos_token_id:
            input_ids = input_ids[:, 1:]
        if input_ids.shape[1] <= self.processor.context_width:
            raise ValueError(
                f"`input_ids` must have more than context_width={self.processor.context_width} tokens a text, "
                f"not counting a start token, got {input_ids.shape[1]}"
            )
        scored, green = self._score_ngrams_in_passage(input_ids)
        ratio = self.greenlist_ratio
        z_score = (green - ratio * scored) / (scored * ratio * (1 - ratio)) ** 0.5
        prediction = z_score > z_threshold
        if not return_dict:
            return prediction
        p_value = torch.erfc(torch.from_numpy(z_score) / math.sqrt(2)).numpy() / 2
        return WatermarkDetectorOutput(
            num_tokens_scored=scored,
            num_green_tokens=green,
            green_fraction=green / scored,
            z_score=z_score,
            p_value=p_value,
            prediction=prediction,
            confidence=1 - p_value,
        )

    def _score_ngrams_in_passage(self, input_ids: Tensor) -> tuple[NDArray[float64], NDArray[float64]]:
        """The numbers of n-grams that count in each text, and of green ones among them, (batch_size,) float64."""
        is_selfhash = self.processor.seeding_scheme == "selfhash"
        counts = []
        for ngrams in input_ids.unfold(1, self.processor.context_width + (not is_selfhash), 1):
            if self.ignore_repeated_ngrams:
                ngrams = ngrams.unique(dim=0)
            green = self.processor.are_green(ngrams if is_selfhash else ngrams[:, :-1], ngrams[:, -1])
            counts.append([len(ngrams), int(green.sum())])
        table = torch.tensor(counts, dtype=torch.float64, device="cpu").reshape(-1, 2).numpy()
        return table[:, 0], table[:, 1]


class SynthIDTextWatermarkDetector:
    """The probability that a text carries a SynthID-Text watermark, from the g-values of its n-grams.

    The detector leaves out n-grams with a repeated context, which carry no watermark, and all n-grams from the first
    end-of-sequence token on.

    detector_module: a trained `BayesianDetectorModel`.
    logits_processor: has the settings of the generation; the detector neither uses nor changes its state.
    tokenizer: the detector reads its `eos_token_id` only.
    """

    def __init__(
        self,
        detector_module: BayesianDetectorModel,
        logits_processor: SynthIDTextWatermarkLogitsProcessor,
        tokenizer: HasEosTokenId,
    ) -> None:
        self.detector_module = detector_module
        self.logits_processor = logits_processor
        self.tokenizer = tokenizer

    def __call__(self, tokenized_outputs: Tensor) -> tuple[Tensor, ...]:
        """`(posterior,)`, posterior (batch_size,), for texts (batch_size, length >= ngram_len)."""
        processor = self.logits_processor
        mask = processor.compute_context_repetition_mask(input_ids=tokenized_outputs)
        before_eos = processor.compute_eos_token_mask(
            input_ids=tokenized_outputs, eos_token_id=self.tokenizer.eos_token_id
        )
        g_values = processor.compute_g_values(input_ids=tokenized_outputs)
        result: tuple[Tensor, ...] = self.detector_module(g_values, mask * before_eos[:, processor.ngram_len - 1 :])
        return result
