"""The compiled forms of the Triton kernels, carried to a machine with a GPU so that no launch there compiles.

python -m benchmarks.triton_forms CACHE      unpacks build/gpu-prebuilt/triton.tar.gz into a folder for TRITON_CACHE_DIR

Triton finds a form by a key of its sources, arguments and release. A form that no longer fits is never found.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.prebuilt import FOLDER

PACKED = FOLDER / "triton.tar.gz"
# Of the files of a form, a launch reads only these. The group names the others with their absolute paths.
GROUP = "__grp__"
KEPT = (".json", ".cubin")


def pack(forms: Iterable[Path], file: Path = PACKED) -> None:
    """Writes the forms, folders of one cache, into one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for form in sorted(forms):
            for path in sorted(path for path in form.iterdir() if path.suffix in KEPT):
                if not path.name.startswith(GROUP):
                    archive.add(path, f"{form.name}/{path.name}")


def unpack(cache: Path, file: Path = PACKED) -> int:
    """Adds the forms in `file` to a cache; returns how many."""
    members: dict[str, list[str]] = {}
    with tarfile.open(file) as archive:
        for member in archive:
            form, name = Path(member.name).parts
            content = archive.extractfile(member)
            assert content is not None and not {form, name} & {"..", "."}
            _write(cache / form / name, content.read())
            members.setdefault(form, []).append(name)
    for form, names in members.items():
        group = {"child_paths": {name: str(cache.resolve() / form / name) for name in names}}
        (metadata,) = [name for name in names if name.endswith(".json")]
        _write(cache / form / f"{GROUP}{metadata}", json.dumps(group).encode())
    return len(members)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    (cache,) = sys.argv[1:] if arguments is None else arguments
    print(f"{unpack(Path(cache))} forms unpacked" if PACKED.exists() else f"there is no {PACKED}: launches compile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
