"""Config files: strict reading, JSON text, download from and upload to the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pygen.config.rules import METADATA_RULES, RULES, setting_problems
from pygen.config.types import normalised
from pygen.rules import plain, shown

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

Config = TypeVar("Config", bound="ConfigFiles")

logger = logging.getLogger("pygen.config")

GENERATION_CONFIG_NAME = "generation_config.json"
_MAX_DEPTH = 32
_PRIVATE_KEY = re.compile(r"__.*__|_original_object_hash|_(bos|eos|pad|decoder_start)_token_tensor", re.DOTALL)


def dtype_name(value: object) -> str | None:
    """torch.float32 -> "float32"; strings and None unchanged."""
    return value if value is None or isinstance(value, str) else str(value).split(".")[-1]


def json_text(settings: Mapping[str, object], default: Callable[[object], object] = plain) -> str:
    """Two spaces, sorted keys, newline at the end; dict keys as `str(key)`, dataclasses by `to_dict()`, dtypes by name.

    `default` converts values that JSON cannot write. Raises `TypeError` for a value that it returns unchanged.
    """

    def convert(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): dtype_name(item) if key == "dtype" else convert(item) for key, item in value.items()}
        if isinstance(value, list):
            return [convert(item) for item in value]
        if is_dataclass(value) and not isinstance(value, type):
            return value.to_dict() if hasattr(value, "to_dict") else asdict(value)
        return value

    def fallback(value: object) -> object:
        replacement = default(value)
        if replacement is value:
            raise TypeError(f"{shown(value)} of type {type(value).__name__} cannot be written as JSON")
        return replacement

    return json.dumps(convert(dict(settings)), indent=2, sort_keys=True, default=fallback) + "\n"


def file_problems(settings: Mapping[str, object]) -> Iterator[str]:
    """A message for every private key, NaN, infinity, deep nesting, and wrong type or range."""
    sound = {}
    for key, value in settings.items():
        if _PRIVATE_KEY.fullmatch(key):
            yield f"`{key}` must not be set by a file: it is a private name, got {shown(value)}"
            continue
        try:
            _check_tree(key, value)
            sound[key] = normalised(key, value)
        except ValueError as error:
            yield str(error)
    yield from setting_problems(sound, in_file=True)


def check_file_settings(settings: Mapping[str, object]) -> None:
    """Raise `ValueError` for the first of `file_problems`."""
    for problem in file_problems(settings):
        raise ValueError(problem)


def _check_tree(key: str, root: object) -> None:
    level = [root]
    for _ in range(_MAX_DEPTH):
        for value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{key}` must hold finite numbers only, got {shown(root)}")
        containers = [value for value in level if isinstance(value, (dict, list))]
        level = [item for c in containers for item in (c.values() if isinstance(c, dict) else c)]
        if not level:
            return
    raise ValueError(f"`{key}` must be nested at most {_MAX_DEPTH} levels deep, got {shown(root)}")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"`{key}` must be given once, got {shown(result[key])} and {shown(value)}")
        result[key] = value
    return result


def _parse_int(digits: str) -> int | float:
    # Python raises for very long integers without naming the key. As infinity they fail by key, like 1e999.
    return int(digits) if len(digits) <= 400 else math.inf


def read_settings(path: str) -> dict[str, Any]:
    """The settings of a JSON file, every one checked; nothing in the file is executed or imported.

    Raises `OSError` when the file cannot be read or is no JSON, `ValueError` naming file, key, value and allowed range
    otherwise.
    """
    settings = parse_settings(path)
    try:
        check_file_settings(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings


def parse_settings(path: str) -> dict[str, Any]:
    """The one JSON object of a file, with its values unchecked. Raises as `read_settings` does."""
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.loads(file.read(), object_pairs_hook=_refuse_duplicates, parse_int=_parse_int)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OSError(f"{path} is not a valid JSON file: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: the file must be nested at most {_MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: the file must hold one JSON object, got {shown(settings)}")
    return settings


def find_config_file(
    name: str, file_name: str, *, subfolder: str = "", revision: str = "main", **download: Any
) -> tuple[str, str | None]:
    """`(path, commit hash)` of a config file in a local folder, else in a hub repository (downloaded unless cached)."""
    if os.path.isdir(name):
        path = os.path.join(name, subfolder, file_name)
        if not os.path.isfile(path):
            raise OSError(f"{os.path.join(name, subfolder)} has no file named {file_name}")
        return path, None
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            name, file_name, subfolder=subfolder or None, revision=revision, library_name="pygen", **download
        )
    except Exception as error:
        raise OSError(
            f"cannot load {file_name} of '{name}': it is no local folder, and the hub answered: {error}"
        ) from error
    commit = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})[\\/]", path)
    return path, commit and commit[1]


def upload_text(
    text: str,
    file_name: str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    **commit: Any,
) -> CommitInfo:
    """Upload one text file to a hub repository, created if missing; returns the hub's description of the commit."""
    from huggingface_hub import create_repo, upload_file

    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    uploaded: CommitInfo = upload_file(
        path_or_fileobj=text.encode("utf-8"),
        path_in_repo=file_name,
        repo_id=repo_id,
        token=token,
        commit_message=commit_message or f"Upload {file_name}",
        **commit,
    )
    return uploaded


class ConfigFiles(ABC):
    """The part of `GenerationConfig` that reads and writes dicts, files and hub repositories."""

    _original_object_hash: int

    @abstractmethod
    def __init__(self, /, **kwargs: Any) -> None: ...

    @abstractmethod
    def validate(self, strict: bool = False) -> None: ...

    @abstractmethod
    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: list[str] | None = None
    ) -> str: ...

    @classmethod
    @abstractmethod
    def from_model_config(cls: type[Config], model_config: Any) -> Config: ...

    def to_json_file(
        self, json_file_path: str | os.PathLike[str], use_diff: bool = True, keys_to_pop: list[str] | None = None
    ) -> None:
        """Write `to_json_string` into a file."""
        text = self.to_json_string(use_diff=use_diff, keys_to_pop=keys_to_pop)
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(text)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `generation_config.json` (or `config_file_name`) into a folder, created if missing.

        Raises `ValueError`, and writes nothing, when `validate(strict=True)` fails or the file could not be read
        back. `compile_config` is left out. `push_to_hub=True` also uploads the file to `repo_id` (default: the folder's
        name); `private`, `token`, `commit_message`, ... then have the meaning of `push_to_hub()`.
        """
        file_name = os.fspath(config_file_name or GENERATION_CONFIG_NAME)
        text = self._file_text()
        if os.path.isfile(save_directory):
            raise AssertionError(f"`save_directory` must be a directory, got the file {os.fspath(save_directory)}")
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, file_name), "w", encoding="utf-8") as file:
            file.write(text)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            upload_text(text, file_name, repo_id, **kwargs)

    def _file_text(self) -> str:
        try:
            self.validate(strict=True)
            text = self.to_json_string(keys_to_pop=["compile_config"])
            check_file_settings(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{error}\n\nFix these issues to save the configuration.") from None
        return text

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload `generation_config.json` to a hub repository, created if missing; returns the commit's description."""
        return upload_text(
            self._file_text(),
            GENERATION_CONFIG_NAME,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config with these settings; entries of `kwargs` win over those of `config_dict`.

        `return_unused_kwargs=True` returns `(config, unused)`: entries of `kwargs` that are neither settings nor in
        `config_dict` are then returned instead of becoming attributes.
        """
        return cls._from_settings(config_dict, kwargs, source=None)

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], kwargs: dict[str, Any], source: str | None) -> Any:
        """`source` is the file that the settings came from, for the messages."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("_from_auto", "_from_pipeline")}
        return_unused = kwargs.pop("return_unused_kwargs", False)
        if "_commit_hash" in settings:
            kwargs.pop("_commit_hash", None)
        known = RULES.keys() | METADATA_RULES.keys() | settings.keys()
        unused = {name: value for name, value in kwargs.items() if return_unused and name not in known}
        used = {name: value for name, value in kwargs.items() if name not in unused}
        if source is not None:
            # Checked separately, so that an error in a keyword does not name the file.
            cls(**{name: value for name, value in used.items() if name in RULES})
        try:
            config = cls(**{**settings, **used})
        except ValueError as error:
            raise ValueError(f"{source}: {error}" if source else str(error)) from None
        return (config, unused) if return_unused else config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Read `generation_config.json` (or `config_file_name`) of a local folder or of a hub repository.

        `subfolder=` is a folder inside either. All other keywords override what the file says, as in `from_dict`:

        ```
        config, unused = GenerationConfig.from_pretrained(name, top_k=1, foo=False, return_unused_kwargs=True)
        unused  # {'foo': False}
        ```

        Raises `OSError` when there is no such file or it is no JSON, and `ValueError` naming file, key, value and the
        allowed range when a setting is refused. Nothing from the file is executed.
        """
        if kwargs.pop("proxies", None) is not None:
            raise ValueError("`proxies` must be None: the hub client takes proxies from the environment (HTTPS_PROXY)")
        path, commit_hash = find_config_file(
            os.fspath(pretrained_model_name),
            os.fspath(config_file_name or GENERATION_CONFIG_NAME),
            subfolder=kwargs.pop("subfolder", ""),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        commit_hash = kwargs.pop("_commit_hash", None) or commit_hash
        settings = {**read_settings(path), "_commit_hash": commit_hash}
        logger.info(f"read configuration file {path}")
        if kwargs.get("_from_model_config"):
            return cls.from_model_config(settings)
        result = cls._from_settings(settings, kwargs, source=path)
        config = result[0] if isinstance(result, tuple) else result
        config._original_object_hash = hash(config)
        return result
