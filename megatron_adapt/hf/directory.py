"""A model directory in Hugging Face layout: configuration, weights, tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.weights import WeightReader, weights_file


class HFDirectory:
    """A directory that was found to hold config.json and weights; made by :meth:`open`.

    Attributes:
        path: the directory.
        config: the parsed config.json.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: str | Path, weights: bool = True) -> HFDirectory:
        """Read config.json and, unless ``weights`` is false, make sure that there are weights.

        Raises:
            ConfigError: not a directory, no or broken config.json, or no weights.
        """
        path = Path(path)
        if not path.is_dir():
            raise ConfigError(
                f"no model at {path}: not a directory. To use a model of the hub, download it first "
                f"(hf download NAME --local-dir DIR)."
            )
        config = read_json(path / "config.json")
        if config is None:
            raise ConfigError(f"{path} holds no config.json; it is not a Hugging Face model directory.")
        if weights and weights_file(path) is None:
            raise ConfigError(f"{path} holds no weights: neither model.safetensors nor its index, nor a .bin file.")
        return cls(path, config)

    @property
    def config_path(self) -> Path:
        """What error messages about the configuration should name."""
        return self.path / "config.json"

    def generation_config(self) -> dict[str, Any] | None:
        """The parsed generation_config.json, None where there is none."""
        return read_json(self.path / "generation_config.json")

    def tokenizer_files(self) -> list[Path]:
        """The files of this directory that belong to its tokenizer."""
        return tokenizer_files(self.path)

    def copy_metadata(self, target: Path) -> None:
        """Copy everything but the weights into ``target`` (made if absent): configuration and tokenizer."""
        target.mkdir(parents=True, exist_ok=True)
        for file in [self.path / "config.json", self.path / "generation_config.json", *self.tokenizer_files()]:
            if file.is_file():
                shutil.copyfile(file, target / file.name)

    def weights(self) -> WeightReader:
        """A lazy reader of the weights; close it, or use it in a ``with`` statement."""
        return WeightReader(self.path)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of any directory that belong to a tokenizer, its chat template included."""
    from megatron_adapt.hf.tokenizer import COMPANIONS

    return [folder / name for name in COMPANIONS if (folder / name).is_file()]


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if the file does not exist.

    Raises:
        ConfigError: not JSON, or not an object, with the line.
    """
    if not path.is_file():
        return None
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno} is not JSON: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path} holds a JSON {type(parsed).__name__} where an object is expected.")
    return parsed
