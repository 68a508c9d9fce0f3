"""Config files: saving, exchange with transformers, keywords and the hub client."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import transformers
from transformers import GenerationConfig as TheirConfig

from pygen.config.config import CompileConfig, GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig
from tests.helpers.config_files import NAME, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.logging.set_verbosity(logging.CRITICAL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Saving


def full_config() -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=1,
        eos_token_id=[1, 2],
        stop_strings=["\n", "é"],
        sequence_bias={(5,): 1.0},
        watermarking_config=SynthIDTextWatermarkingConfig(5, [1, 2]),
        custom={"a": [1, {"b": None}]},
    )


def test_save_and_load(tmp_path: Path) -> None:
    config = full_config()
    config.compile_config = CompileConfig()
    config.save_pretrained(tmp_path / "new" / "folder", config_name="ignored")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [NAME]
    loaded = GenerationConfig.from_pretrained(tmp_path / "new" / "folder")
    assert loaded == full_config()
    assert loaded._original_object_hash == hash(loaded)
    assert loaded._commit_hash is None
    assert json.loads((tmp_path / "new/folder" / NAME).read_text())["transformers_version"] == "5.6.1"
    config.save_pretrained(tmp_path, "other.json")
    assert GenerationConfig.from_pretrained(tmp_path, "other.json") == full_config()
    assert GenerationConfig.from_pretrained(tmp_path / "new", subfolder="folder") == full_config()
    full_config().to_json_file(tmp_path / "all.json", use_diff=False)
    assert GenerationConfig.from_pretrained(str(tmp_path), config_file_name="all.json") == full_config()


def test_save_refuses(tmp_path: Path) -> None:
    end = "\n\nFix these issues to save the configuration."
    refused: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 0.5}, "`temperature` is set to `0.5`"),
        ({"pad_token_id": -1}, "`pad_token_id`: should be >= 0 but is -1"),
        ({"do_sample": True, "top_p": [0.5, 0.6]}, "`top_p` must be a number in [0, 1], got [0.5, 0.6]"),
        ({"custom": [float("nan")]}, "`custom` must hold finite numbers only, got [nan]"),
        ({"output_scores": True}, "`return_dict_in_generate` is not True"),
    ]
    for settings, message in refused:
        with pytest.raises(ValueError) as caught:
            GenerationConfig(**settings).save_pretrained(tmp_path / "folder")
        assert message in str(caught.value)
        assert str(caught.value).endswith(end)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        GenerationConfig(custom=object()).save_pretrained(tmp_path / "folder")
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        GenerationConfig(custom=object()).to_json_file(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AssertionError, match="must be a directory"):
        GenerationConfig().save_pretrained(tmp_path / "file")


def test_files_are_theirs_and_theirs_are_ours(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"do_sample": True, "temperature": 0.25, "top_k": 0, "min_p": 0.1, "renormalize_logits": True},
        {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.5, "num_return_sequences": 2},
        {"eos_token_id": [3, 4], "bad_words_ids": [[1, 2], [3]], "exponential_decay_length_penalty": (3, 1.5)},
        {"sequence_bias": {(1, 2): 0.5}, "stop_strings": ["ü"], "custom": {"x": {"y": [1, 2]}}, "max_time": 1.5},
    ]
    for number, settings in enumerate(variants):
        GenerationConfig(**settings).save_pretrained(tmp_path / "ours", f"{number}.json")
        TheirConfig(**settings).save_pretrained(tmp_path / "theirs", f"{number}.json")
        texts = [(tmp_path / side / f"{number}.json").read_text() for side in ("ours", "theirs")]
        assert texts[0] == texts[1].replace(transformers.__version__, "5.6.1")
        theirs = TheirConfig.from_pretrained(tmp_path / "ours", f"{number}.json")
        mine = GenerationConfig.from_pretrained(tmp_path / "theirs", f"{number}.json")
        assert theirs.to_json_string(ignore_metadata=True) == mine.to_json_string(ignore_metadata=True)
        assert mine == GenerationConfig(**settings)


# Keywords


def test_unused_keywords_as_documented(tmp_path: Path) -> None:
    write(tmp_path, '{"do_sample": true, "custom": 1}')
    config, unused = GenerationConfig.from_pretrained(tmp_path, top_k=1, foo=False, custom=2, return_unused_kwargs=True)
    assert unused == {"foo": False}
    assert (config.top_k, config.custom, config.do_sample) == (1, 2, True)
    assert not hasattr(config, "foo")
    config, unused = GenerationConfig.from_dict({"top_p": 0.5}, do_sample=True, foo=1, return_unused_kwargs=True)
    assert (config.top_p, unused) == (0.5, {"foo": 1})
    # Without the flag a keyword may be a model-specific setting.
    assert GenerationConfig.from_pretrained(tmp_path, foo=3).foo == 3
    assert GenerationConfig.from_dict({}, foo=3).foo == 3


def test_keywords_join_the_file_before_it_is_judged(tmp_path: Path) -> None:
    write(tmp_path, '{"num_return_sequences": 3}')
    assert GenerationConfig.from_pretrained(tmp_path, do_sample=True).num_return_sequences == 3


def test_from_model_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "eos_token_id": 4, "text_config": {"bos_token_id": 5}}')
    config = GenerationConfig.from_pretrained(tmp_path, "config.json", _from_model_config=True)
    assert (config.eos_token_id, config.bos_token_id, config._from_model_config) == (4, 5, True)
    assert not hasattr(config, "hidden_size")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"has no file named {NAME}"):
        GenerationConfig.from_pretrained(tmp_path)
    write(tmp_path, "{}")
    with pytest.raises(OSError, match=r"has no file named other\.json"):
        GenerationConfig.from_pretrained(tmp_path, "other.json")
    with pytest.raises(OSError, match=f"cannot load {NAME} of '/no/such/folder'"):
        GenerationConfig.from_pretrained("/no/such/folder")
    with pytest.raises(OSError, match="cannot load"):
        GenerationConfig.from_pretrained("org/absent", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="`proxies` must be None"):
        GenerationConfig.from_pretrained(tmp_path, proxies={"https": "host:1"})
    assert GenerationConfig.from_pretrained(tmp_path, proxies=None) == GenerationConfig()


# The hub


def test_read_from_the_hub_cache(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT / "sub"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT)
    write(snapshot.parent, '{"top_k": 4, "do_sample": true}')
    write(snapshot, '{"top_k": 1.5}')
    for revision in ("main", "v2"):
        config = GenerationConfig.from_pretrained(
            "org/name", cache_dir=tmp_path, local_files_only=True, revision=revision
        )
        assert (config.top_k, config._commit_hash) == (4, COMMIT)
        assert COMMIT not in config.to_json_string(use_diff=False)
    with pytest.raises(ValueError, match=rf"{COMMIT}.sub.{NAME}: `top_k` must be a 64-bit integer >= 0, got 1.5"):
        GenerationConfig.from_pretrained("org/name", subfolder="sub", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(OSError, match="cannot load"):
        GenerationConfig.from_pretrained("org/name", revision="v3", cache_dir=tmp_path, local_files_only=True)


def test_download_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def download(repo_id: str, filename: str, **kwargs: Any) -> str:
        seen.update(kwargs, repo_id=repo_id, filename=filename)
        return write(tmp_path, '{"top_k": 4}')

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    GenerationConfig.from_pretrained("a/b", "c.json", "cache", True, False, "secret", "dev", subfolder="s")
    assert seen == {
        "repo_id": "a/b",
        "filename": "c.json",
        "cache_dir": "cache",
        "force_download": True,
        "local_files_only": False,
        "token": "secret",
        "revision": "dev",
        "subfolder": "s",
        "library_name": "pygen",
    }


def test_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(repo_id: str, **kwargs: Any) -> Any:
        calls.append((repo_id, kwargs))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_file(**kwargs: Any) -> str:
        calls.append(("upload", kwargs))
        return "commit"

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_file", upload_file)
    config = GenerationConfig(do_sample=True, watermarking_config=WatermarkingConfig())
    assert config.push_to_hub("repo", private=True, token="t", revision="dev", create_pr=True) == "commit"
    assert calls[0] == ("repo", {"private": True, "token": "t", "exist_ok": True})
    sent = calls[1][1]
    assert json.loads(sent.pop("path_or_fileobj")) == json.loads(config.to_json_string())
    assert sent == {
        "path_in_repo": NAME,
        "repo_id": "me/repo",
        "token": "t",
        "revision": "dev",
        "create_pr": True,
        "commit_message": f"Upload {NAME}",
        "commit_description": None,
    }
    calls.clear()
    config.save_pretrained(tmp_path / "model", push_to_hub=True, commit_message="hello")
    assert [name for name, _ in calls] == ["model", "upload"]
    assert calls[1][1]["commit_message"] == "hello"
    calls.clear()
    with pytest.raises(ValueError, match="Fix these issues"):
        GenerationConfig(temperature=0.5).push_to_hub("repo")
    assert calls == []
