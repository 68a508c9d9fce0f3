"""Strict reading of config files: an error names file, key and value; what real models' files hold is read."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import transformers

from pygen.config.config import GenerationConfig
from pygen.config.rules import EXTENSION_RULES, METADATA_RULES, RULES
from tests.helpers.config_files import NAME, write

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
    "top_n_sigma": ["-0.5", "true"],
    "seed": ["-1", "0.5", "[1, 2]"],
    "on_invalid": ['"exit"'],
    "output_logprobs": ['"both"', "1"],
    "output_kept": ['"yes"'],
    "kept_limit": ["0", "true"],
    "thinking_budget": ["-1", "1.5"],
    "thinking_start": ['""', "[]", "[-1]"],
    "thinking_end": ['""', "[]", "7"],
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
    assert EXTENSION_RULES.keys() - MALFORMED.keys() == {"top_logprobs"}


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
