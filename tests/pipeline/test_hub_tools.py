"""What users of other tools do with an exported folder: sentence-transformers embeds with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ziggurat.data.pack import take
from ziggurat.objectives.base import context_of
from ziggurat.objectives.labelled import texts
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import run
from ziggurat.types import Part, Tokens


def test_sentence_transformers_embeds_as_we_do(world: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = run("text.yaml")
    lines = [json.loads(line)["sentence"] for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    model = library.SentenceTransformer(str(folder / "pretrain" / "hf"), device="cpu")
    theirs = model.encode(lines, batch_size=7)  # batches of several lengths, padded
    opened = open_checkpoint(folder / "pretrain")
    assert opened.tokenizer is not None
    network = opened.build()
    ctx = context_of(opened.network.model, opened.tokenizer, 64, 0)
    for line, theirs_one in zip(lines, theirs, strict=True):  # ours: the text alone, no padding at all
        (encoded,) = opened.tokenizer.encode([line])
        ids = np.asarray(encoded.ids, np.int32)
        bounds, flags = np.array([0, len(ids)]), np.ones(len(ids), bool)
        part = Part(ids, bounds, flags, flags, np.zeros((0, 3), np.int64), np.zeros(2, np.int64))
        batch = texts(Tokens({"text": part}, np.zeros(1, np.uint64)), ctx)
        alone = take(batch, np.array([0])).map(torch.as_tensor)
        with torch.no_grad():
            hidden = network(alone.streams)["text"]
        assert len(hidden) == len(ids) + 2
        np.testing.assert_allclose(theirs_one, hidden.mean(0).numpy(), atol=1e-5)
    assert np.std(theirs, axis=0).max() > 0.01  # texts are told apart
