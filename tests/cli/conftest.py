"""A small model in a folder, and the program as a function."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pygen.cli.main import main
from tests.helpers.tokenizers import byte_level

TEMPLATE = """\
{%- for m in messages -%}
{%- if m['role'] == 'tool' -%}{{ raise_exception('no such role: tool') }}{%- endif -%}
{{ m['role'] + ': ' + m['content'] + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ':' }}{%- endif -%}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Shell = Callable[..., Ran]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a random Llama with a byte-level tokenizer, and no chat template."""
    path, tokenizer = tmp_path_factory.mktemp("model"), byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.35,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def chat_folder(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the same model with a chat template."""
    path = tmp_path_factory.mktemp("chat")
    for file in Path(folder).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return str(path)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Returns a function that runs a command line, with `stdin` as the text of standard input, or with a terminal."""

    def run(*words: str, stdin: str = "", terminal: bool = False) -> Ran:
        text = io.StringIO(stdin)
        monkeypatch.setattr(text, "isatty", lambda: terminal)
        monkeypatch.setattr(sys, "stdin", text)
        try:
            code = main(words, version="1.2.3")
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run
