"""One call of `generate()` from a command line: its flags, its model and its arguments."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

import torch

from pygen.cli import flags
from pygen.cli.model import add_model, load, load_assistant
from pygen.cli.prompt import add_prompt, ids_of
from pygen.config.config import GenerationConfig

# transformers stops after 20 tokens where nobody says how many.
MAX_NEW_TOKENS = 256


def add_call(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of a call."""
    add_prompt(parser)
    add_model(parser)
    group = parser.add_argument_group("call")
    group.add_argument("--generation-config", metavar="FILE", help="settings of a file; flags override them")
    group.add_argument(
        "--manual-seed", type=int, metavar="N", help="torch.manual_seed: the tokens of transformers for it"
    )
    group.add_argument("--assistant", metavar="NAME", help="a smaller model that drafts tokens")
    group.add_argument("--negative-prompt", metavar="TEXT", help="the text that --guidance-scale leads away from")
    group.add_argument("--runtime", default="auto", choices=["auto", "eager", "graph"], help="whether CUDA graphs run")
    flags.add_settings(parser)


@dataclass
class Loaded:
    """A model, its tokenizer, and the keyword arguments of a call without the prompt."""

    model: Any
    tokenizer: Any
    settings: dict[str, Any]
    arguments: argparse.Namespace

    def inputs(self, prompt: str | list[Any]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` (1, length) of a prompt: a text, messages or ids (see `ids_of`)."""
        ids = torch.tensor([ids_of(self.tokenizer, prompt, self.arguments)], device=self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def call(self, text: str) -> dict[str, Any]:
        """Every keyword argument of `generate` for a text."""
        inputs = self.inputs(text)
        if self.arguments.negative_prompt is not None:
            negative = self.inputs(self.arguments.negative_prompt)
            inputs["negative_prompt_ids"] = negative["input_ids"]
            inputs["negative_prompt_attention_mask"] = negative["attention_mask"]
        return {**inputs, **self.settings}


def prepare(arguments: argparse.Namespace) -> Loaded:
    """Loads what the arguments name, and seeds torch."""
    settings = flags.given(arguments)
    config = None
    if (path := arguments.generation_config) is not None:
        folder, file = (path, None) if os.path.isdir(path) else (os.path.dirname(path) or ".", os.path.basename(path))
        config = GenerationConfig.from_pretrained(folder, file)
    model, tokenizer = load(arguments)
    lengths = [settings, *(vars(c) for c in (config, model.generation_config) if c is not None)]
    if all(values.get(name) is None for values in lengths for name in ("max_length", "max_new_tokens")):
        settings["max_new_tokens"] = MAX_NEW_TOKENS
    if arguments.assistant is not None:
        settings["assistant_model"] = load_assistant(arguments.assistant, arguments)
    if arguments.manual_seed is not None:
        torch.manual_seed(arguments.manual_seed)
    settings |= {"generation_config": config, "tokenizer": tokenizer, "runtime": arguments.runtime}
    return Loaded(model, tokenizer, settings, arguments)
