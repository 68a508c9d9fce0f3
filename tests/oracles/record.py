"""Records the results of transformers 4.55, the last release with contrastive search and DoLa, for `cases`.

Run `python -m tests.oracles.record` from the root of the repository, in an environment with that release.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.oracles import cases


def main() -> None:
    version = transformers.__version__
    if not version.startswith("4.55."):
        raise SystemExit(f"transformers must be 4.55, which has these searches itself, got {version}")
    for search, calls in cases.RECORDINGS.items():
        record(search, calls)


def record(search: str, calls: dict[str, tuple[str, dict[str, Any]]]) -> None:
    results = {}
    for name, (family, asked) in calls.items():
        model = cases.seeded_model(family)
        torch.manual_seed(0)
        results[name] = cases.recorded(model.generate(**cases.arguments(asked)))
    families = sorted({family for family, _ in calls.values()})
    head = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "fingerprints": {family: cases.fingerprint(family) for family in families},
    }
    path = Path(__file__).with_name(f"{search}.json")
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in results.items()]
    facts = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    path.write_text("{\n" + facts + ',\n"results": {\n' + ",\n".join(lines) + "\n}\n}\n")
    print(f"{path}: {len(results)} calls")


if __name__ == "__main__":
    main()
