"""Records SmolLM2's logits over a text, so that benches measure on a trained model's distributions without the model.

python -m benchmarks.record_traces     writes benchmarks/traces/smollm2-135m-instruct.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.inputs import TRACES, load_smollm2

MODEL = "SmolLM2-135M-Instruct"
LIMIT_BYTES = 4 << 20

# Prose, a list, speech, numbers and code: the model predicts some of the next tokens surely and others hardly.
TEXT = """The harbour wakes before the town does. Ropes creak, gulls argue over the night's scraps, and the first \
boats slip out between the stone piers while the water is still the colour of slate. By noon the fish will be \
sold, the nets mended, and the old men back on their bench, where they have \
agreed for forty years that the weather is getting worse.

To repair a puncture you need: 1. two tyre levers, 2. a patch and some glue, 3. a pump, 4. a bucket of water.
"How far is it to the lighthouse?" she asked. "Three miles if the tide is out," said the boy, "and eleven if it is not."

In 2019 the ferry carried 48,210 passengers; in 2020 it carried 17,364, which is 64 percent fewer.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
"""


def record(rows: int) -> tuple[torch.Tensor, dict[str, str]]:
    """Returns (rows, vocab_size) bfloat16 logits at evenly spaced positions of TEXT, and the file's metadata."""
    model, tokenizer = load_smollm2()
    input_ids = tokenizer(TEXT, return_tensors="pt").input_ids
    length = input_ids.shape[1]
    positions = torch.linspace(0, length - 1, min(rows, length)).round().long()
    with torch.inference_mode():
        logits = model(input_ids).logits[0, positions].to(torch.bfloat16)
    metadata = {
        "model": MODEL,
        "text": TEXT,
        "input_ids": json.dumps(input_ids[0].tolist()),
        "positions": json.dumps(positions.tolist()),
        "torch": torch.__version__,
    }
    return logits.clone(), metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--out", type=Path, default=TRACES / f"{MODEL.lower()}.safetensors")
    args = parser.parse_args()
    logits, metadata = record(args.rows)
    size = logits.numel() * logits.element_size()
    if size > LIMIT_BYTES:
        raise SystemExit(f"{len(logits)} rows take {size} bytes, more than the {LIMIT_BYTES} that may be committed")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".part")
    save_file({"logits": logits}, partial, metadata=metadata)
    os.replace(partial, args.out)
    entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
    low, middle, high = torch.quantile(entropy, torch.tensor([0.0, 0.5, 1.0])).tolist()
    print(f"wrote {args.out}: {tuple(logits.shape)}, entropy {low:.2f} to {high:.2f} nats, median {middle:.2f}")


if __name__ == "__main__":
    main()
