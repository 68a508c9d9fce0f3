"""The trainable classifier that `SynthIDTextWatermarkDetector` uses, its config, and their files."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pygen.config.files import find_config_file, json_text, read_settings
from pygen.config.watermark import SynthIDTextWatermarkingConfig, watermarking_config_from
from pygen.outputs import ModelOutput
from pygen.rules import Rule, checked, integer, number, shown

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

_RULES = {
    "watermarking_depth": integer(1, 2**15),
    "base_rate": number("[0, 1]"),
    "model_name": Rule("a string", lambda value: isinstance(value, str)),
}


class BayesianDetectorConfig:
    """Settings of a `BayesianDetectorModel`.

    watermarking_depth: the number of layers of the tournament, one per watermarking key.
    base_rate: the prior probability that a text carries the watermark.
    model_name: the model that wrote the texts; None when unknown.
    watermarking_config: the settings of the generation, a dict of the fields of a `SynthIDTextWatermarkingConfig` for
        `SynthIDTextWatermarkLogitsProcessor(**watermarking_config, device=...)`; None when unknown.
    Other keywords become attributes.

    Raises `ValueError` with field, value and range, and for a keyword that would hide a method.
    """

    def __init__(self, /, watermarking_depth: int | None = None, base_rate: float = 0.5, **kwargs: object) -> None:
        self.watermarking_depth = watermarking_depth
        self.base_rate = base_rate
        self.model_name: str | None = None
        self.watermarking_config: dict[str, object] | None = None
        for name, value in kwargs.items():
            if hasattr(type(self), name):
                raise ValueError(f"`{name}` must not be a setting: it is a name of {type(self).__name__}")
            setattr(self, name, copy.deepcopy(value))
        self.set_detector_information(self.model_name, self.watermarking_config)

    def set_detector_information(self, model_name: str | None, watermarking_config: object) -> None:
        """Sets the model that wrote the texts, and its SynthID-Text settings (config or dict)."""
        fields = watermarking_config
        if fields is not None:
            config = watermarking_config_from(fields)
            if not isinstance(config, SynthIDTextWatermarkingConfig):
                raise ValueError(
                    "`watermarking_config` must be a SynthIDTextWatermarkingConfig or a dict of its fields, "
                    f"got {shown(fields)}"
                )
            fields = copy.deepcopy(fields) if isinstance(fields, dict) else config.to_dict()
        before = self.model_name, self.watermarking_config
        self.model_name, self.watermarking_config = model_name, fields
        try:
            self.validate()
        except ValueError:
            self.model_name, self.watermarking_config = before
            raise

    def validate(self) -> None:
        """Raises `ValueError` for the first field of a wrong type or out of range."""
        for name, rule in _RULES.items():
            if problem := rule.problem(name, getattr(self, name)):
                raise ValueError(problem)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    def to_json_string(self) -> str:
        return json_text(self.to_dict())

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> BayesianDetectorConfig:
        return cls(**config_dict)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `config.json` into a folder, and makes the folder if needed."""
        self.validate()
        text = self.to_json_string()
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, CONFIG_NAME), "w", encoding="utf-8") as file:
            file.write(text)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download: Any
    ) -> BayesianDetectorConfig:
        """Reads `config.json` from a local folder or a hub repository; see `BayesianDetectorModel.from_pretrained`."""
        return cls._from_file(_locate(pretrained_model_name_or_path, CONFIG_NAME, **download)[0])

    @classmethod
    def _from_file(cls, path: str) -> BayesianDetectorConfig:
        settings = read_settings(path)
        try:
            return cls.from_dict(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BayesianDetectorConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


@dataclass
class BayesianWatermarkDetectorModelOutput(ModelOutput):
    """loss: (), or None without labels. posterior_probabilities: (batch_size,) P(watermarked | g-values)."""

    loss: Tensor | None = None
    posterior_probabilities: Tensor | None = None


class BayesianDetectorWatermarkedLikelihood(nn.Module):
    """P(g-values | watermarked): a logistic model of the number of different tokens in each match.

    ```
    P(two tokens in layer i) = sigmoid(beta_i + sum over j < i of delta_ij g_j)
    P(g_i) = ((g_i + 0.5) P(two) + P(one)) / 2
    ```
    """

    def __init__(self, watermarking_depth: int) -> None:
        super().__init__()
        self.watermarking_depth = watermarking_depth
        self.beta = nn.Parameter(-2.5 + 0.001 * torch.randn(1, 1, watermarking_depth))
        self.delta = nn.Parameter(0.001 * torch.randn(1, 1, watermarking_depth, watermarking_depth))

    def forward(self, g_values: Tensor) -> Tensor:
        """g-values 0 or 1 (batch_size, length, depth) -> likelihoods, same shape."""
        logits = nn.functional.linear(g_values.to(self.delta.dtype), self.delta[0, 0].tril(-1)) + self.beta
        two_tokens = torch.sigmoid(logits)
        return 0.5 * ((g_values + 0.5) * two_tokens + (1 - two_tokens))


class BayesianDetectorModel(nn.Module):
    """P(watermarked | g-values) by Bayes' rule (the Bayesian score of Dathathri et al., Nature 634, 2024).

    ```
    posterior = sigmoid(logit(prior) + sum over n-grams that count and layers of ln(P(g | watermarked) / 0.5))
    loss      = cross entropy(posterior, labels) + loss_batch_weight * sum(delta**2)
    ```

    It is for tournament watermarks with g-values that are 0 and 1 equally often. The likelihood and `prior` (1,),
    initially the config's `base_rate`, are trainable. Weights have the names of transformers' class, so both read the
    same files.
    """

    def __init__(self, config: BayesianDetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.watermarking_depth, self.base_rate = (
            checked(name, getattr(config, name), _RULES[name]) for name in ("watermarking_depth", "base_rate")
        )
        self.likelihood_model_watermarked = BayesianDetectorWatermarkedLikelihood(self.watermarking_depth)
        self.prior = nn.Parameter(torch.tensor([float(self.base_rate)]))

    def forward(
        self,
        g_values: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        loss_batch_weight: float = 1,
        return_dict: bool = False,
    ) -> tuple[Tensor, ...] | BayesianWatermarkDetectorModelOutput:
        """g_values (batch_size, length, depth) of 0 and 1, mask (batch_size, length) of the n-grams that count, labels
        (batch_size,) 1 for watermarked -> `(posterior,)`, `(posterior, loss)`, or both by name."""
        self._check(g_values, mask, labels)
        log_odds = torch.log(self.likelihood_model_watermarked(g_values)) - math.log(0.5)
        prior = self.prior.clamp(1e-5, 1 - 1e-5)
        evidence = (log_odds * mask[..., None]).sum(dim=(1, 2))
        posterior = torch.sigmoid(torch.log(prior) - torch.log(1 - prior) + evidence)
        loss = None
        if labels is not None:
            cross_entropy = nn.functional.binary_cross_entropy(
                posterior.clamp(1e-5, 1 - 1e-5), labels.to(posterior.dtype)
            )
            loss = cross_entropy + loss_batch_weight * (self.likelihood_model_watermarked.delta**2).sum()
        if return_dict:
            return BayesianWatermarkDetectorModelOutput(loss=loss, posterior_probabilities=posterior)
        return (posterior,) if loss is None else (posterior, loss)

    def _check(self, g_values: Tensor, mask: Tensor, labels: Tensor | None) -> None:
        shape = tuple(g_values.shape)
        if g_values.dim() != 3 or shape[2] != self.watermarking_depth:
            raise ValueError(
                "`g_values` must have shape (batch_size, length, watermarking_depth="
                f"{self.watermarking_depth}), got {shape}"
            )
        if mask.shape != shape[:2]:
            raise ValueError(f"`mask` must have shape (batch_size, length) = {shape[:2]}, got {tuple(mask.shape)}")
        if labels is not None and labels.shape != shape[:1]:
            raise ValueError(f"`labels` must have shape (batch_size,) = {shape[:1]}, got {tuple(labels.shape)}")

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `config.json` and `model.safetensors` into a folder, and makes the folder if needed."""
        from safetensors.torch import save_file

        described = {"architectures": [type(self).__name__], "dtype": self.prior.dtype}
        BayesianDetectorConfig.from_dict({**self.config.to_dict(), **described}).save_pretrained(save_directory)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, os.path.join(save_directory, WEIGHTS_NAME), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download: Any
    ) -> BayesianDetectorModel:
        """The model in a local folder or a hub repository, on the CPU, in the dtype of its file, in eval mode.

        Keywords: cache_dir, force_download, local_files_only, token, revision, subfolder, as everywhere on the hub.
        Raises `OSError` for a file that is missing or unreadable, and `ValueError` with file, key, value and rule for
        invalid content. It reads `config.json` and `model.safetensors` only, and executes nothing.
        """
        config_path, commit = _locate(pretrained_model_name_or_path, CONFIG_NAME, **download)
        if commit is not None:
            download["revision"] = commit
        weights_path, _ = _locate(pretrained_model_name_or_path, WEIGHTS_NAME, **download)
        # The meta device allocates nothing: the sizes in the config are unverified until the weights have these shapes.
        config = BayesianDetectorConfig._from_file(config_path)
        try:
            with torch.device("meta"):
                model = cls(config)
        except ValueError as error:
            raise ValueError(f"{config_path}: {error}") from None
        model.load_state_dict(_read_weights(weights_path, model.state_dict()), assign=True)
        return model.eval()


def _locate(
    name: str | os.PathLike[str],
    file_name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str = "main",
    subfolder: str = "",
) -> tuple[str, str | None]:
    """`(path, commit hash)` of a file in a local folder or a hub repository."""
    return find_config_file(
        os.fspath(name),
        file_name,
        subfolder=subfolder,
        revision=revision,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
        token=token,
    )


def _read_weights(path: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file: the names and shapes of `expected`, one floating dtype, finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path} is not a valid safetensors file: {error}") from error
    if weights.keys() != expected.keys():
        raise ValueError(f"{path}: the tensors must be {sorted(expected)}, got {sorted(weights)}")
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"{path}: the tensors must have one floating point dtype, got {sorted(map(str, dtypes))}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: `{name}` must have shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: `{name}` must hold finite numbers only")
    return weights
