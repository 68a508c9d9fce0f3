"""Config files: saving, strict reading, exchange with transformers, and the hub client."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import transformers
from transformers import GenerationConfig as TheirConfig

from pygen.config.config import CompileConfig, GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig
from pygen.config.rules import EXTENSION_RULES, METADATA_RULES, RULES

NAME = "generation_config.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# JSON values. The error for each names its key.
NOT_A_BOOLEAN = ["1", "0", '"true"', "[true]", "{}", "0.0"]
NOT_AN_INTEGER = ["1.5", "2.0", '"3"', "true", "[3]", "{}", "1e999", "NaN", "99999999999999999999", "9" * 5000]
NOT_A_NUMBER = ['"1.0"', "true", "[0.5, 0.5]", "{}", "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000]
NOT_IDS = ["3", '"3"', "[1.5]", "[[1]]", "[true]", "[null]", "{}"]
MALFORMED: dict[str, list[str]] = {
    "temperature": [*NOT_A_NUMBER, "-0.1"],
    "top_p": [*NOT_A_NUMBER, "1.0000001", "-1e-9", "2"],
    "min_p": ["-0.1", "1.1", '"0.1"', "NaN"],
    "top_h": ["0", "0.0", "1.5", "[0.5]"],
    "typical_p": ["0.0", "1.5", "NaN"],
    "epsilon_cutoff": ["1.0", "-0.1", "false"],
    "eta_cutoff": ["1", "-1e-3", "[]"],
    "repetition_penalty": ["0", "0.0", "-1.0", "[1.1, 1.2]", "Infinity"],
    "encoder_repetition_penalty": ["0.0", '"1"'],
    "length_penalty": ["NaN", '"1"', "-Infinity"],
    "guidance_scale": ["NaN", "[1.5]"],
    "max_time": ["-1", "Infinity"],
    "assistant_confidence_threshold": ["-0.1", "1.1"],
    "penalty_alpha": ["-0.5", '"x"'],
    "diversity_penalty": ["NaN", "[]"],
    "top_k": [*NOT_AN_INTEGER, "-1"],
    "max_length": [*NOT_AN_INTEGER, "-1"],
    "max_new_tokens": ["0", "-3", "1.0"],
    "min_length": ["-1", "false"],
    "min_new_tokens": ["-1"],
    "num_beams": ["0", "-1", "2.5", "true"],
    "num_beam_groups": ["0"],
    "num_return_sequences": ["0", '"2"', "2"],
    "no_repeat_ngram_size": ["-1", "[2]", "2.0"],
    "encoder_no_repeat_ngram_size": ["-1"],
    "num_assistant_tokens": ["0", "Infinity"],
    "prompt_lookup_num_tokens": ["0"],
    "max_matching_ngram_size": ["0"],
    "assistant_early_exit": ["0"],
    "assistant_lookbehind": ["0"],
    "target_lookbehind": ["0"],
    "prefill_chunk_size": ["0"],
    "max_cache_len": ["0", "1.5"],
    "use_mtp": ["1"],
    "assistant_ensemble_weight": ["0", "1.0", "NaN"],
    "speculation_type": ['"mtp"', "1"],
    "do_sample": NOT_A_BOOLEAN,
    "use_cache": ['"yes"', "1"],
    "renormalize_logits": ["1"],
    "remove_invalid_values": ["0"],
    "token_healing": ['""'],
    "output_scores": ["1"],
    "return_dict_in_generate": ["[]"],
    "early_stopping": ["1", '"always"', "[]"],
    "stop_strings": ["3", '""', '["a", ""]', '["a", 3]', "{}"],
    "cache_implementation": ['"fast"', '"__import__"', "3", '["static"]'],
    "cache_config": ["3", "[]", '"quanto"'],
    "num_assistant_tokens_schedule": ['"linear"', "1"],
    "bad_words_ids": ["3", "[]", "[3]", "[[]]", "[[-1]]", '[["a"]]', "[[1.0]]", "[[[1]]]"],
    "sequence_bias": [
        "3",
        "{}",
        "[]",
        '{"a": 1.0}',
        '{"(1, 2)": "x"}',
        '{"(1, os)": 1.0}',
        "[[1, 2.0]]",
        "[[[], 1.0]]",
    ],
    "exponential_decay_length_penalty": ["3", "[1]", "[1, 2, 3]", '["a", 1.5]', "[1.5, 1.5]", "[1, NaN]"],
    "suppress_tokens": NOT_IDS,
    "begin_suppress_tokens": ["5", "[[5]]"],
    "eos_token_id": ['"2"', "[]", "[[1]]", "[true]", "1.0", "{}", "9223372036854775808"],
    "forced_eos_token_id": ["[]", "2.5"],
    "forced_bos_token_id": ["[1]", '"1"'],
    "pad_token_id": ["[0]", "0.5", '"0"'],
    "bos_token_id": ["true", "[1]"],
    "decoder_start_token_id": ["[]", '"0"'],
    "compile_config": ['{"backend": "inductor"}', '"inductor"', "true"],
    "watermarking_config": [
        "3",
        "[]",
        '{"greenlist_ratio": 2}',
        '{"seeding_scheme": "sha1"}',
        '{"bias": NaN}',
        '{"context_width": 0}',
        '{"construct_processor": 1}',
        '{"keys": [1]}',
        '{"ngram_len": 5, "keys": "abc"}',
        '{"ngram_len": 5, "keys": [1], "sampling_table_size": 99999999}',
    ],
    "continuous_batching_config": ["3", "[]"],
    "dola_layers": ['"middle"', "3", "[-1]"],
    "constraints": ["{}", "1"],
    "force_words_ids": ['"a"'],
    "low_memory": ["1"],
    "_from_model_config": ["1", '"true"'],
    "_commit_hash": ["1"],
    "transformers_version": ["5.6", "[]"],
    "presence_penalty": ["NaN", '"1"'],
    "frequency_penalty": ["Infinity"],
    "seed": ["-1", "0.5", "[1, 2]"],
    "on_invalid": ['"exit"'],
    # unknown settings: of any type, but finite, of bounded depth, and never an attribute of the class
    "alignment_heads": [
        "[[1, NaN]]",
        '{"a": {"b": Infinity}}',
        "1e999",
        "[" * 40 + "]" * 40,
        '{"a":' * 40 + "1" + "}" * 40,
    ],
    "from_dict": ["1"],
    "update": ["null", "{}"],
    "validate": ["true"],
    "to_json_string": ['"x"'],
    "get_generation_mode": ["[]"],
    "save_pretrained": ["0"],
    "extra_output_flags": ["[]"],
    "__class__": ['"dict"'],
    "__dict__": ["{}"],
    "__reduce__": ['["os.system", ["true"]]'],
    "__anything__": ["1"],
    "_file_text": ["1"],
    "_original_object_hash": ["1"],
    "_eos_token_tensor": ["[1]"],
    "streamer": ["true"],
    "logits_processor": ["[]"],
    "stopping_criteria": ["null"],
    "assistant_model": ['"name/of/model"'],
}
CASES = [(key, value) for key, values in MALFORMED.items() for value in values]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.logging.set_verbosity(logging.CRITICAL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(folder: Path, text: str) -> str:
    (folder / NAME).write_text(text, encoding="utf-8")
    return str(folder / NAME)


# Strict reading


def test_enough_malformed_files() -> None:
    assert len(CASES) >= 120
    unchecked = RULES.keys() - MALFORMED.keys()
    assert unchecked == {
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "is_assistant",
        "disable_compile",
    }
    assert METADATA_RULES.keys() <= MALFORMED.keys()
    assert EXTENSION_RULES.keys() - MALFORMED.keys() == {"output_logprobs", "top_logprobs"}


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}-{value[:20]}" for key, value in CASES])
def test_malformed_file_is_refused_by_file_key_and_value(tmp_path: Path, key: str, value: str) -> None:
    path = write(tmp_path, f'{{"do_not_mind": 1, "{key}": {value}}}')
    with pytest.raises(ValueError) as caught:
        GenerationConfig.from_pretrained(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: `{key}")
    assert re.search(r" (must|lacks|is no field)", message)
    read = json.loads(value) if len(value) < 4000 else float("inf")
    inner = list(read.values())[-1] if key == "watermarking_config" and isinstance(read, dict) else read
    shown = f"got {inner!r}"
    tail = message[message.index(", got ") + 2 :]
    if key in ("bad_words_ids", "alignment_heads", "watermarking_config", "__reduce__") or key == "sequence_bias":
        # The message may shorten containers, and it shows the keys of a bias as tuples.
        assert len(tail) > len("got ")
    else:
        assert shown in tail
    assert len(message) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"the file must hold one JSON object, got \[1, 2\]"),
        ("null", "the file must hold one JSON object, got None"),
        ("3", "the file must hold one JSON object, got 3"),
        ('{"top_k": 1, "top_k": 2}', "`top_k` must be given once, got 1 and 2"),
        ('{"a": {"b": 1, "b": 2}}', "`b` must be given once, got 1 and 2"),
        ("[" * 100_000, "the file must be nested at most 32 levels deep"),
        ('{"num_return_sequences": 2}', "`num_return_sequences` must be 1 .*, got 2"),
        ('{"num_return_sequences": 4, "num_beams": 2}', "`num_return_sequences` must be in .*num_beams=2.*, got 4"),
    ],
)
def test_malformed_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: {message}"):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'top_k': 1}", b'{"top_k": 1,}', b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b"__import__('os')"]
)
def test_no_json_is_an_os_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(OSError, match=rf"^{re.escape(str(tmp_path / NAME))} is not a valid JSON file"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_bad_keyword_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    write(tmp_path, "{}")
    with pytest.raises(
        ValueError, match=r"^`top_p` must be a number in \[0, 1\], or a sequence of them, one per row, got 2"
    ):
        GenerationConfig.from_pretrained(tmp_path, top_p=2)


def test_what_model_files_hold(tmp_path: Path) -> None:
    text = """{"_from_model_config": false, "temperature": 1, "top_p": 1, "do_sample": true, "pad_token_id": null,
      "eos_token_id": [1, 2], "lang_to_id": {"<|en|>": 5}, "suppress_tokens": [-1, 3], "max_initial_timestamp_index": 5,
      "transformers_version": "4.30.0.dev0", "sequence_bias": {"(1, 2)": 1.5, "(3,)": -2}, "prompt": "\\u00e9"}"""
    write(tmp_path, text)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.lang_to_id == {"<|en|>": 5}
    assert config.sequence_bias == {(1, 2): 1.5, (3,): -2}
    assert config.temperature == 1
    assert config.transformers_version == "4.30.0.dev0"
    assert config.prompt == "é"


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
