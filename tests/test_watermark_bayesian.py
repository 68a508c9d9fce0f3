"""The trainable SynthID-Text classifier against transformers' classifier, and the contents of its files."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pygen
from pygen import BayesianDetectorConfig, BayesianDetectorModel

MARK = {"ngram_len": 5, "keys": [1, 2, 3], "sampling_table_size": 64, "sampling_table_seed": 0}


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


def both(depth: int) -> tuple[BayesianDetectorModel, Any]:
    models: list[Any] = []
    for module in (pygen, transformers):
        torch.manual_seed(depth)
        models.append(module.BayesianDetectorModel(module.BayesianDetectorConfig(depth, base_rate=0.3)))
    return models[0], models[1]


def example(depth: int, batch_size: int = 4, length: int = 7) -> dict[str, torch.Tensor]:
    return {
        "g_values": torch.randint(2, (batch_size, length, depth)),
        "mask": torch.rand(batch_size, length) < 0.8,
        "labels": torch.arange(batch_size) % 2.0,
    }


def test_signatures_are_theirs() -> None:
    assert parameters(BayesianDetectorConfig) == parameters(transformers.BayesianDetectorConfig)
    for method in ("__init__", "forward"):
        mine, theirs = (getattr(module.BayesianDetectorModel, method) for module in (pygen, transformers))
        assert parameters(mine) == parameters(theirs)
    assert parameters(BayesianDetectorConfig.set_detector_information) == parameters(
        transformers.BayesianDetectorConfig.set_detector_information
    )


# The model


@pytest.mark.parametrize("depth", [2, 3, 30])
def test_start_outputs_and_gradients_are_theirs(depth: int) -> None:
    mine, theirs = both(depth)
    weights = theirs.state_dict()
    assert mine.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in mine.state_dict().items())

    with torch.no_grad():
        for parameter in (*mine.parameters(), *theirs.parameters()):
            torch.manual_seed(parameter.numel())
            parameter.copy_(torch.rand_like(parameter))
    given = example(depth)
    expected = theirs(**given, loss_batch_weight=0.1)
    for output in (mine(**given, loss_batch_weight=0.1), mine(**given, loss_batch_weight=0.1, return_dict=True)[::-1]):
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    given.pop("labels")
    (posterior,) = mine(**given)
    torch.testing.assert_close(posterior, expected[0], rtol=1e-5, atol=1e-6)
    assert mine(**given, return_dict=True).keys() == {"posterior_probabilities"}

    output[1].backward()
    expected[1].backward()
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_evidence_by_hand() -> None:
    model = BayesianDetectorModel(BayesianDetectorConfig(1, base_rate=0.5))
    with torch.no_grad():
        model.likelihood_model_watermarked.beta.fill_(100.0)  # two tokens in every match
        g_values = torch.tensor([[[1], [1], [0]], [[1], [0], [0]]])
        (posterior,) = model(g_values, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    # P(1) = 3/4 and P(0) = 1/4 against 1/2: odds 3/2 * 3/2 * 1/2 and 3/2.
    assert posterior.tolist() == pytest.approx([1.125 / 2.125, 1.5 / 2.5])


@pytest.mark.parametrize(("depth", "length"), [(3, 1), (1, 5)])
def test_texts_do_not_mix(depth: int, length: int) -> None:
    # transformers squeezes dimensions of size 1 here, and so mixes up texts.
    mine, _ = both(depth)
    given = example(depth, length=length)
    with torch.no_grad():
        (together,) = mine(given["g_values"], given["mask"])
        apart = [mine(given["g_values"][i : i + 1], given["mask"][i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"g_values": (4, 7, 2)},
            r"`g_values` must have shape \(batch_size, length, watermarking_depth=3\), got \(4, 7",
        ),
        ({"g_values": (7, 3)}, r"`g_values` must have shape .*got \(7, 3\)"),
        ({"mask": (4, 6)}, r"`mask` must have shape \(batch_size, length\) = \(4, 7\), got \(4, 6\)"),
        ({"labels": (3,)}, r"`labels` must have shape \(batch_size,\) = \(4,\), got \(3,\)"),
    ],
)
def test_wrong_shapes(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        both(3)[0](**{**example(3), **{name: torch.zeros(shape) for name, shape in change.items()}})


# Files


def test_files_of_either_serve_both(tmp_path: Path) -> None:
    mine, theirs = both(3)
    for model, folder in ((mine, "mine"), (theirs, "theirs")):
        model.config.set_detector_information("some/model", MARK)
        with torch.no_grad():
            model.prior.fill_(0.25)
        model.save_pretrained(tmp_path / folder)
    # from_pretrained of 5.6.1 does not work for this class.
    theirs.load_state_dict(load_file(tmp_path / "mine" / "model.safetensors"))
    assert transformers.BayesianDetectorConfig.from_pretrained(tmp_path / "mine").watermarking_config == MARK

    files = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("mine", "theirs")]
    assert files[1].pop("transformers_version")
    assert files[0] == files[1]

    for folder in ("mine", "theirs"):
        loaded = BayesianDetectorModel.from_pretrained(tmp_path / folder)
        assert not loaded.training
        assert all(torch.equal(value, mine.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.config == BayesianDetectorConfig.from_pretrained(tmp_path / folder)
        assert (loaded.config.model_name, loaded.config.watermarking_config) == ("some/model", MARK)


def test_the_dtype_of_the_file_is_kept(tmp_path: Path) -> None:
    both(3)[0].to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = BayesianDetectorModel.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    config: Any = BayesianDetectorConfig.from_pretrained(tmp_path)
    assert config.dtype == "bfloat16"
    assert loaded(**example(3))[0].isfinite().all()


def test_config_keeps_what_it_is_given() -> None:
    config: Any = BayesianDetectorConfig(3, colour="blue")
    assert config.colour == "blue"
    config.set_detector_information("a/b", pygen.SynthIDTextWatermarkingConfig(4, [1, 2]))
    assert config.watermarking_config == pygen.SynthIDTextWatermarkingConfig(4, [1, 2]).to_dict()
    assert BayesianDetectorConfig.from_dict(json.loads(config.to_json_string())) == config
    assert config != BayesianDetectorConfig(3)
    before = config.to_dict()
    with pytest.raises(ValueError, match="`model_name` must be a string, got 3"):
        config.set_detector_information(3, None)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", OSError, "config.json is not a valid JSON file"),
        ("[1]", ValueError, "the file must hold one JSON object"),
        ('{"watermarking_depth": 3, "watermarking_depth": 4}', ValueError, "`watermarking_depth` must be given once"),
        (
            '{"watermarking_depth": "3"}',
            ValueError,
            r"config.json: `watermarking_depth` must be an integer in \[1, 32768",
        ),
        ('{"watermarking_depth": 9000000000}', ValueError, r"`watermarking_depth` must be an integer in \[1, 32768"),
        ("{}", ValueError, "config.json: `watermarking_depth` must be an integer in .*, got None"),
        (
            '{"watermarking_depth": 3, "base_rate": 1.5}',
            ValueError,
            r"`base_rate` must be a number in \[0, 1\], got 1.5",
        ),
        ('{"watermarking_depth": 3, "to_dict": 1}', ValueError, "`to_dict` must not be a setting"),
        ('{"watermarking_depth": 3, "__class__": 1}', ValueError, "`__class__` must not be set by a file"),
        (
            '{"watermarking_depth": 3, "watermarking_config": {"bias": 1}}',
            ValueError,
            "`watermarking_config` must be a SynthIDTextWatermarkingConfig",
        ),
        (
            '{"watermarking_depth": 3, "watermarking_config": {"ngram_len": 0, "keys": [1]}}',
            ValueError,
            r"`watermarking_config.ngram_len` must be an integer in \[1, 1024\], got 0",
        ),
    ],
)
def test_malformed_configs(text: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    both(3)[0].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        BayesianDetectorModel.from_pretrained(tmp_path)


BETA, DELTA = "likelihood_model_watermarked.beta", "likelihood_model_watermarked.delta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BETA: torch.zeros(1, 1, 2)}, rf"`{BETA}` must have shape \(1, 1, 3\), got \(1, 1, 2\)"),
        ({"extra": torch.zeros(1)}, r"the tensors must be \['likelihood.*'prior'\], got \['extra'"),
        ({"prior": torch.ones(1, dtype=torch.int64)}, "must have one floating point dtype, got"),
        ({"prior": torch.ones(1, dtype=torch.float64)}, "must have one floating point dtype, got .*float32.*float64"),
        ({DELTA: torch.full((1, 1, 3, 3), torch.nan)}, f"`{DELTA}` must hold finite numbers only"),
    ],
)
def test_malformed_weights(change: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    model = both(3)[0]
    model.save_pretrained(tmp_path)
    save_file({**model.state_dict(), **change}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        BayesianDetectorModel.from_pretrained(tmp_path)


def test_missing_and_unreadable_weights(tmp_path: Path) -> None:
    both(3)[0].save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(OSError, match=r"model\.safetensors is not a valid safetensors file"):
        BayesianDetectorModel.from_pretrained(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has no file named model\.safetensors"):
        BayesianDetectorModel.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="local_file"):
        BayesianDetectorModel.from_pretrained(tmp_path, local_file=True)


def test_works_without_transformers() -> None:
    script = """
import sys
sys.modules["transformers"] = None
import torch, pygen
ids, scores = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 9)
pygen.WatermarkingConfig().construct_processor(9, "cpu")(ids, scores)
pygen.SynthIDTextWatermarkingConfig(4, [1, 2]).construct_processor(9, "cpu")(ids, scores)
pygen.BayesianDetectorModel(pygen.BayesianDetectorConfig(2))(torch.ones(1, 3, 2), torch.ones(1, 3))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
