"""The files of a Hugging Face folder: `config.json`, safetensors (whole or in shards), and writing them in one move."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.errors import UserError, check
from ziggurat.systems.modelcard import MARK

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    check(
        folder.is_dir(),
        f"no folder {folder}",
        "a Hub id is not fetched: download it first (`hf download NAME --local-dir FOLDER`) and give the folder",
    )
    path = folder / "config.json"
    hint = "give a folder in Hugging Face format: config.json and model.safetensors"
    check(path.is_file(), f"{folder} has no config.json", hint)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", hint) from error
    check(isinstance(config, dict), f"{path} is not a JSON object", hint)
    return config


def read_tensors(folder: Path, notes: list[str]) -> dict[str, Tensor]:
    """All tensors of a folder, by the Hub's names, in float32."""
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"cannot read {folder / INDEX}: {error!r}", "download the folder again") from error
    else:
        files = [WEIGHTS]
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.ckpt*", "*.h5", "*.msgpack") for path in folder.glob(pattern)]
        if pickled and not (folder / WEIGHTS).is_file():
            raise UserError(
                f"{folder} has {', '.join(pickled)} but no {WEIGHTS}",
                "only safetensors are read (a pickle can run code): save it once with save_pretrained(..., safe_serialization=True)",
            )
    stored: dict[str, Tensor] = {}
    for name in files:
        path = folder / Path(name).name
        check(path.is_file(), f"{folder} has no {name}", "download the folder again, with all its files")
        try:
            stored |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}", "the file is damaged or incomplete: download it again") from error
    other = {str(t.dtype).removeprefix("torch.") for t in stored.values() if t.is_floating_point()} - {"float32"}
    if other:
        notes.append(f"weights converted from {', '.join(sorted(other))} to float32")
    return {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}


def publish(
    folder: Path, config: Mapping[str, Any], stored: dict[str, Tensor], tokenizer: Callable[[Path], object] | None, readme: str
) -> None:
    """Write beside and rename, so that a folder is whole or as it was; `tokenizer` writes its files into a folder. A README.md that
    is not ours (it lacks `modelcard.MARK`) takes the place of `readme`."""
    full = folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").is_file()))
    check(not full, f"{folder} holds something that is not an export", "give a new or empty folder")
    new, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    try:
        new.mkdir(parents=True)
        save_file(stored, new / WEIGHTS, metadata={"format": "pt"})
        (new / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        shutil.copymode(new / "config.json", new / WEIGHTS)  # safetensors makes files only the owner can read
        if tokenizer is not None:
            tokenizer(new)
        own = folder / "README.md"
        written = own.read_text("utf-8", "replace") if own.is_file() else MARK
        (new / "README.md").write_text(readme if MARK in written else written, "utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}", "make room or mend the permissions, then export again") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
