"""config check: every finding by key and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pygen.config.config import GenerationConfig
from tests.cli.conftest import Shell


def check(shell: Shell, path: Path, settings: Any, *words: str) -> tuple[int, list[str]]:
    file = path / "generation_config.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    code, out, err = shell("config", "check", str(file), *words)
    assert err == ""
    return code, [" ".join(line.split()) for line in out.splitlines()[1:]]


def test_a_sound_file_and_its_folder(shell: Shell, tmp_path: Path) -> None:
    settings = {"do_sample": True, "top_p": 0.9, "eos_token_id": [2, 3], "transformers_version": "5.6.1"}
    assert check(shell, tmp_path, settings, "--strict") == (0, [])
    assert shell("config", "check", str(tmp_path)).out.endswith(
        "generation_config.json: 4 keys, 0 errors, 0 warnings\n"
    )


def test_every_error_is_shown(shell: Shell, tmp_path: Path) -> None:
    settings = {
        "top_p": 1.2,
        "do_sample": "yes",
        "__class__": 1,
        "watermarking_config": {"bias": "x"},
        "seed": -1,
        "temprature": 0.7,
    }
    code, found = check(shell, tmp_path, settings)
    assert code == 1
    assert found == [
        "error `__class__` must not be set by a file: it is a private name, got 1",
        "error `watermarking_config.bias` must be a finite number, got 'x'",
        "error `do_sample` must be a boolean, got 'yes'",
        "error `top_p` must be a number in [0, 1], got 1.2",
        "error `seed` must be an integer in [0, 2**64), got -1",
        "warning `temprature`=0.7 is no setting of generation; did you mean `temperature`?",
    ]


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        ({"num_return_sequences": 3}, "error", "`num_return_sequences` must be 1 without do_sample=True"),
        ({"streamer": 1}, "error", "`streamer` must be given to generate(), not kept in a config"),
        ({"update": 1}, "error", "`update` must not be set: it would hide a part of GenerationConfig, got 1"),
        ({"top_p": 0.5}, "warning", "`top_p`: `do_sample` is not True but `top_p` is set to `0.5`"),
        ({"pad_token_id": -1}, "warning", "`pad_token_id`: should be >= 0 but is -1"),
        ({"of_another_tool": [1]}, "warning", "`of_another_tool`=[1] is no setting of generation"),
    ],
)
def test_findings(settings: dict[str, Any], level: str, text: str, shell: Shell, tmp_path: Path) -> None:
    code, found = check(shell, tmp_path, settings)
    assert code == (level == "error") and len(found) == 1 and found[0].startswith(f"{level} {text}")
    assert check(shell, tmp_path, settings, "--strict")[0] == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"top_k": 1, "top_k": 2}', '{"a": ' + "[" * 20_000])
def test_what_is_no_object_is_one_line(text: str, shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    code, out, err = shell("config", "check", str(file))
    assert (code, out, err.count("\n")) == (1, "", 1) and str(file) in err


def test_an_error_is_what_reading_refuses(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 1.2, "do_sample": "yes"}')
    with pytest.raises(ValueError, match="`do_sample` must be a boolean"):
        GenerationConfig.from_pretrained(tmp_path)
