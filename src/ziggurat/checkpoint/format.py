"""Checkpoints on disk: a folder `step-00000400/` that is whole or is not there.

    model.safetensors       the network's parameters: `model.*`, `heads.<name>.*`; shared tensors once
    optimizer.safetensors   optimizer state, `<parameter>/exp_avg` and so on (optional)
    rng.safetensors         states of random generators (optional)
    memory.safetensors      what texts that go on in the next step remember (optional)
    spec.json               the card: what is needed to rebuild the network, and where it comes from
    state.json              step, data position, seeds: anything JSON
    tokenizer/              its files (optional)
    MANIFEST.json           size and sha256 of every file above; written last

Files are written into `tmp-...`, synced, listed in the manifest, and the folder renamed: a killed save leaves a `tmp-`
folder that nobody reads and the next save sweeps. There is no pickle anywhere.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.checkpoint.manifest import FORMAT, MANIFEST, digest, files_in, listing, manifest
from ziggurat.checkpoint.names import nearest
from ziggurat.errors import UserError, check
from ziggurat.nn.spec import Network

REQUIRED = ("model.safetensors", "spec.json", "state.json")
LIBRARIES = ("ziggurat", "torch", "safetensors", "tokenizers", "numpy")
SPARE = 1 << 20
"""Bytes that must be left beside the tensors' own before a save is tried."""
SHOWN = 5
RESULTS = ("result", "within")  # subfolders of a stage with what it hands on where that is not its last step, the first before

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Card:
    """What a network is and where it comes from; `spec.json`."""

    network: Network
    system: str = ""
    """Name of the system page, which knows the Hub's names for it."""
    lineage: tuple[Mapping[str, Any], ...] = ()
    """One entry an ancestor stage, oldest first: its name, steps, tokens, data hashes."""
    fingerprint: str = ""
    """The tokenizer's."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Anything JSON that later readers want (length, dropout)."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back, every byte verified."""

    folder: Path
    card: Card
    tensors: dict[str, Tensor]
    """The network's parameters, on the CPU; tied names hold the same tensor."""
    optimizer: dict[str, Tensor]
    """Empty if none was saved."""
    rng: dict[str, Tensor]
    memory: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer's files."""
        return self.folder / "tokenizer" if (self.folder / "tokenizer").is_dir() else None


def save(
    stage: Path,
    step: int,
    card: Card,
    tensors: Tensors,
    *,
    state: Mapping[str, Any],
    optimizer: Tensors | None = None,
    rng: Tensors | None = None,
    memory: Tensors | None = None,
    tokenizer: Path | Callable[[Path], object] | None = None,
    keep: int = 2,
) -> Path:
    """Write checkpoint `stage/step-<step>` whole, then remove all but the newest `keep`; return its folder.

    `tokenizer` is a folder to copy or a function that writes into a folder. Raises `UserError` when the disk is full
    or the folder cannot be written; earlier checkpoints stay as they are.
    """
    final = at(stage, step)
    temporary = stage / f"tmp-{final.name}-{os.getpid()}"
    files, ties = dict[str, dict[str, Tensor]](), dict[str, dict[str, str]]()
    for name, group in {"model": tensors, "optimizer": optimizer or {}, "rng": rng or {}, "memory": memory or {}}.items():
        if group or name == "model":
            files[f"{name}.safetensors"], ties[name] = _stored(group)
    texts = {"spec.json": as_json(_written(card, ties)), "state.json": as_json(dict(state))}  # fails before anything is written
    try:
        stage.mkdir(parents=True, exist_ok=True)
        _sweep(stage)
        needed = sum(t.numel() * t.element_size() for stored in files.values() for t in stored.values())
        free = shutil.disk_usage(stage).free
        if free < needed + SPARE:
            raise OSError(f"it needs {_megabytes(needed)}")
        temporary.mkdir()
        for name, text in texts.items():
            _write(temporary / name, text)
        for name, stored in files.items():
            save_file(stored, temporary / name, metadata={"format": "pt"})
            shutil.copymode(temporary / "spec.json", temporary / name)  # safetensors makes files only the owner can read
        if tokenizer is not None:
            _copy(tokenizer, temporary / "tokenizer")
        for path in files_in(temporary):
            _sync(path)
        _write(temporary / MANIFEST, manifest(listing(temporary)))
        for folder in {path.parent for path in files_in(temporary)}:
            _sync(folder)
        publish(temporary, final)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write the checkpoint {final}: {getattr(error, 'strerror', None) or error} ({_free(stage)} free)",
            "earlier checkpoints are whole: make room or mend the permissions, then run the same command again",
        ) from error
    prune(stage, keep, known=final)
    return final


def at(stage: Path, step: int) -> Path:
    """The folder of a stage's checkpoint at a step."""
    return stage / f"step-{step:08d}"


def load(folder: Path) -> Saved:
    """Read a checkpoint (or the newest good one of a stage's folder); raises `UserError` if a single byte is not as written."""
    folder = find(folder)
    problems = verify(folder)
    check(
        not problems,
        f"the checkpoint {folder} is damaged: {'; '.join(problems[:SHOWN])}",
        "use an earlier checkpoint, or copy this one again",
    )
    card, ties = _card(folder)
    groups = {}
    for name in ("model", "optimizer", "rng", "memory"):
        path = folder / f"{name}.safetensors"
        groups[name] = load_file(path) if path.exists() else {}
        groups[name] |= {repeated: groups[name][original] for repeated, original in ties.get(name, {}).items()}
    state = json.loads((folder / "state.json").read_text("utf-8"))
    return Saved(folder, card, groups["model"], groups["optimizer"], groups["rng"], groups["memory"], state)


def card(folder: Path) -> Card:
    """The card alone, without reading (or verifying) the tensors."""
    return _card(find(folder))[0]


def find(folder: Path) -> Path:
    """`folder` if it is a checkpoint, else the newest good checkpoint in it; raises `UserError` if there is none."""
    check(folder.is_dir(), f"no folder {folder}", "give the folder of a checkpoint (step-...) or of a stage")
    if (folder / MANIFEST).exists() or re.fullmatch(r"step-\d+", folder.name):
        return folder
    found = next((f for name in (*RESULTS, "") if (f := latest(folder / name)) is not None), None)
    if found is None:
        hint = "a Hugging Face folder becomes a checkpoint with `ziggurat import`" if (folder / "config.json").exists() else ""
        raise UserError(f"{folder} is not a checkpoint and holds none that is whole", hint or "look for a folder step-...")
    return found


def verify(folder: Path, *, contents: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one line a problem, file named; empty if nothing is.

    Compares every file with the manifest's size and sha256 (`contents=False`: sizes only, for a glance).
    """
    try:
        text = (folder / MANIFEST).read_text("utf-8")
        listed: dict[str, dict[str, Any]] = json.loads(text)["files"]
        if text != manifest(listed):
            return [f"{MANIFEST} itself was changed"]
        problems = [f"{name} is not in {MANIFEST}" for name in REQUIRED if name not in listed]
        for name, entry in listed.items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry["size"]:
                problems.append(f"{name} has {path.stat().st_size} bytes, not {entry['size']}")
            elif contents and digest(path) != entry["sha256"]:
                problems.append(f"{name} has other contents than were written (sha256 differs)")
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]
    return problems


def latest(stage: Path) -> Path | None:
    """The newest checkpoint of a stage that is whole, or None; newer damaged ones are warned about by file and reason."""
    for folder in _checkpoints(stage):
        problems = verify(folder)
        if not problems:
            return folder
        log.warning("passing over the damaged checkpoint %s: %s", folder, "; ".join(problems[:SHOWN]))
    return None


def prune(stage: Path, keep: int, *, known: Path | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, never the newest whole one and nothing before that one was seen.

    `known` was just written and hashed: it counts as whole, and of the others only sizes are looked at.
    """
    check(keep >= 1, f"keep = {keep} checkpoints of {stage}", "keep at least 1")
    kept, whole = 0, known is not None
    for folder in _checkpoints(stage):
        if kept < keep or not whole or folder == known:
            good = not verify(folder, contents=not whole)
            whole, kept = whole or good, kept + good
        else:
            _remove(folder)


def match(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], where: str = "the checkpoint") -> None:
    """Raise one `UserError` unless `found` has exactly the names and shapes of `expected` (the model's)."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and tuple(expected[name]) != tuple(found[name])]
    rows = [
        f"  missing     {name} (nearest: {', '.join(nearest(name, unexpected or found)) or 'none'})" for name in missing[:SHOWN]
    ]
    rows += [
        f"  unexpected  {name} (nearest: {', '.join(nearest(name, missing or expected)) or 'none'})"
        for name in unexpected[:SHOWN]
    ]
    rows += [f"  shape       {name}: {list(found[name])} there, {list(expected[name])} in the model" for name in other[:SHOWN]]
    total = len(missing) + len(unexpected) + len(other)
    if total:
        more = [f"  and {total - len(rows)} more"] if total > len(rows) else []
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(other)} of another shape"
        raise UserError(
            "\n".join([f"{where} is of another shape than the model: {counts}", *rows, *more]),
            "give the same system, size, model dials and vocabulary as it was trained with",
        )


def _stored(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors with their own memory, and {name: earlier name} of those that are the same tensor."""
    first: dict[Any, str] = {}
    stored: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in first:
            ties[name] = first[same]
            continue
        first[same] = name
        plain = tensor.detach().cpu().contiguous()
        shared = plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()  # a view of something larger
        stored[name] = plain.clone() if shared else plain
    return stored, ties


def _written(card: Card, ties: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES if _installed(name)}
    return {
        "format": FORMAT,
        "network": card.network.model_dump(mode="json"),
        "system": card.system,
        "lineage": [dict(stage) for stage in card.lineage],
        "fingerprint": card.fingerprint,
        "more": dict(card.more),
        "ties": ties,
        "versions": versions,
    }


def _card(folder: Path) -> tuple[Card, dict[str, dict[str, str]]]:
    path = folder / "spec.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, this version reads {FORMAT}")
        network = Network.model_validate(raw["network"])
        return Card(network, raw["system"], tuple(raw["lineage"]), raw["fingerprint"], raw["more"]), raw["ties"]
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: JSON's and pydantic's too
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).replace("\n", " ")
        raise UserError(f"cannot read {path}: {reason}", "was it written by another version of ziggurat?") from error


def publish(temporary: Path, final: Path) -> None:
    """Rename into place. One of the same step steps aside as `.old`, which still counts as a checkpoint, until the new one is in."""
    aside = final.with_name(f"{final.name}.old")
    if aside.exists() and final.exists():  # an earlier save was killed here; keep the one that is whole
        _remove(final if verify(final) else aside)
    if final.exists():
        os.replace(final, aside)
    os.replace(temporary, final)
    _sync(final.parent)
    _remove(aside)


def put_back(stage: Path) -> None:
    """Give whole checkpoints of a stage, and of its `RESULTS`, that stepped aside for one of the same step their names again: a kill left the
    place empty."""
    for aside in (found for place in ("", *RESULTS) for found in (stage / place).glob("step-*.old")):
        if not (final := aside.with_suffix("")).exists() and not verify(aside):
            os.replace(aside, final)


def _checkpoints(stage: Path) -> list[Path]:
    """Checkpoint folders, newest first; at the same step the one that stepped aside is the older."""
    steps = {}
    for folder in stage.glob("step-*"):
        name = re.fullmatch(r"step-(\d+)(\.old)?", folder.name)
        if name and folder.is_dir():
            steps[folder] = (int(name[1]), name[2] is None)
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that none is ever seen half deleted."""
    if folder.exists():
        doomed = folder.with_name(f"tmp-{folder.name}-gone-{os.getpid()}")
        try:
            os.replace(folder, doomed)
        except OSError as error:  # one too many does no harm
            log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror)
        shutil.rmtree(doomed, ignore_errors=True)


def _sweep(stage: Path) -> None:
    for folder in stage.glob("tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _copy(tokenizer: Path | Callable[[Path], object], folder: Path) -> None:
    if isinstance(tokenizer, Path):
        shutil.copytree(tokenizer, folder)
    else:
        folder.mkdir()
        tokenizer(folder)


def as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(stage: Path) -> str:
    folder = next(p for p in (stage, *stage.parents) if p.is_dir())
    return _megabytes(shutil.disk_usage(folder).free)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True
