"""A dataset that changed is another one: a folder by its files, one of the hub by its commit. No network is needed here."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ziggurat.data import versions
from ziggurat.data.sources import Hub, documents, fingerprint

NEWEST, OLDER = "9f" * 20, "1a" * 20


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    versions._commit.cache_clear()
    yield
    versions._commit.cache_clear()


def answering(monkeypatch: pytest.MonkeyPatch, commits: dict[str, str], cache: Path) -> list[Any]:
    """A hub that has these branches and tags, and nothing else; returns the questions it was asked."""
    asked: list[Any] = []

    def dataset_info(name: str, revision: str, timeout: float) -> Any:
        asked.append((name, revision))
        if revision not in commits:
            raise ConnectionError("no route to the hub\nlong story")
        return types.SimpleNamespace(sha=commits[revision])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(dataset_info=dataset_info))
    constants = types.SimpleNamespace(HF_HUB_CACHE=str(cache))
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    return asked


def test_a_folder_is_read_again_when_its_files_change(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/train.jsonl").write_text('{"text": "one", "label": "yes"}\n', "utf-8")
    spec = Hub(id=str(folder), columns={"text": "text", "label": "label"})
    before = fingerprint(spec)
    (folder / ".cache").mkdir()
    (folder / ".cache/notes").write_text("of somebody else", "utf-8")
    assert fingerprint(spec) == before != fingerprint(spec, "test")
    assert [d.fields["label"] for d in documents(spec)] == ["yes"]
    (folder / "deep/train.jsonl").write_text('{"text": "one", "label": "no"}\n', "utf-8")
    assert fingerprint(spec) != before and [d.fields["label"] for d in documents(spec)] == ["no"]
    before = fingerprint(spec)
    (folder / "README.md").write_text("which may say what files there are", "utf-8")
    assert fingerprint(spec) != before


def test_the_newest_version_is_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = answering(monkeypatch, {"main": OLDER, "v2": NEWEST}, tmp_path)
    with caplog.at_level(logging.WARNING):
        older, tag = fingerprint(Hub(id="who/what")), fingerprint(Hub(id="who/what", revision="v2"))
        assert fingerprint(Hub(id="who/what")) == older and asked == [("who/what", "main"), ("who/what", "v2")]
        versions._commit.cache_clear()  # another process, after a push
        answering(monkeypatch, {"main": NEWEST, "v2": NEWEST}, tmp_path)
        assert fingerprint(Hub(id="who/what")) != older and fingerprint(Hub(id="who/what", revision="v2")) == tag
        for pinned in ("1a2b3c4", NEWEST):
            assert fingerprint(Hub(id="who/what", revision=pinned)) and versions.version("who/what", pinned) == []
    assert asked == [("who/what", "main"), ("who/what", "v2")] and not caplog.records


def test_without_an_answer_it_is_the_version_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that was loaded, so that a machine without a network goes on where one with it stopped; said once."""
    answering(monkeypatch, {"main": OLDER}, tmp_path)
    online = fingerprint(Hub(id="who/what"))
    versions._commit.cache_clear()
    asked = answering(monkeypatch, {}, tmp_path)
    refs = tmp_path / "datasets--who--what" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(OLDER, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert fingerprint(Hub(id="who/what")) == online == fingerprint(Hub(id="who/what"))
        assert versions.version("who/else", None) == []
    assert len(asked) == 2
    assert [record.message for record in caplog.records] == [
        "who/what: the hub does not say which version `main` is (no route to the hub); "
        f"it is taken to be the one loaded here before, {OLDER[:12]}",
        "who/else: the hub does not say which version `main` is (no route to the hub); whether it changed is not seen",
    ]
    versions._commit.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert versions.version("who/what", None) == []
