"""Tokens a second of every system at one size on the same text, next to the Hub's class of it where there is one.

    python benchmarks/systems_speed.py [--rounds 5] [--threads 2] [--precision fp32] [--only bert,t5]

One size (4 layers, width 256, 4 heads, vocabulary 8,000), documents of 128 tokens, 16 documents a step, a forward and a backward pass and a step of
fused AdamW; each system with its own objective. Ours and the Hub's class take steps in turn, and the best step of each counts. The Hub's side gets the
same examples, one document a row, with the labels of its own kind: it scores every row over the vocabulary, as its classes do. Tokens are those of
the text, whatever a system makes of them, so systems can be compared with each other.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LAYERS, WIDTH, HEADS, VOCAB, LENGTH, ROWS = 4, 256, 4, 8000, 128, 16
DIALS = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mlp": 4 * WIDTH}
Step = Callable[[], None]


def text(documents: int, room: int, seed: int = 0) -> Any:
    """Documents that fill a row, of Zipf ids, with words of one to three tokens and a sentence about every 20."""
    from ziggurat.context import mix
    from ziggurat.types import Part, Tokens

    rng = np.random.default_rng(seed)
    total = documents * room
    ids = (200 + rng.zipf(1.2, total) % (VOCAB - 200)).astype(np.int32)
    words, sentences = rng.random(total) < 0.6, rng.random(total) < 0.05
    bounds = np.arange(documents + 1) * room
    words[bounds[:-1]] = sentences[bounds[:-1]] = True
    part = Part(ids, bounds, words | sentences, sentences, np.zeros((0, 3), np.int64), np.zeros(documents + 1, np.int64))
    return Tokens({"text": part}, mix(np.arange(documents, dtype=np.uint64)))


def example(system: str) -> tuple[Any, Any, Any]:
    """(network, objective, packed batch of ROWS documents)"""
    import torch
    from pydantic import TypeAdapter

    from ziggurat.context import Context, Layout, Vocab
    from ziggurat.data.pack import pack, take
    from ziggurat.nn.network import NetworkModel
    from ziggurat.nn.spec import EncoderDecoder, Network
    from ziggurat.objectives import AnyObjective
    from ziggurat.systems import SYSTEMS

    page = SYSTEMS[system]
    objective = TypeAdapter(AnyObjective).validate_python(dict(page.objective))
    model = objective.equipped(page.sized("mini" if "mini" in page.sizes else next(iter(page.sizes)), DIALS, VOCAB))
    names = {f"<extra_id_{n}>": 100 + n for n in range(90)} | {"[ATTN]": 99}
    vocab = Vocab(VOCAB, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(99, 190)), names)
    layout = Layout((), (), (3,)) if page.template in ("gpt2", "t5") else Layout((2,), (3,), (3,), (0, 1))
    more: dict[str, Any] = {"visibility": model.visibility}
    if isinstance(model, EncoderDecoder):
        more |= {"start": 2, "streams": ("encoder", "decoder")}
    ctx = Context(vocab, layout, LENGTH, **more)
    formed = objective.form(objective.grouped(text(2 * ROWS, LENGTH - len(layout.first) - len(layout.last))), ctx)
    batch = objective.corrupt(take(formed, np.arange(min(ROWS, len(formed)))), ctx)
    network = NetworkModel(Network(model=model, heads=dict(objective.heads(model))))
    network.initialise(torch.Generator().manual_seed(0))
    return network, objective, pack(batch, objective.rows(ctx), vocab.pad)


def ours(system: str, dtype: Any) -> Step:
    """A step of ours."""
    import torch

    from ziggurat.train.loop import backward
    from ziggurat.train.optim import build_optimizer
    from ziggurat.train.stage import Optim

    network, objective, batch = example(system)
    optimizer = build_optimizer(network.train(), Optim(lr=1e-4))

    def step() -> None:
        backward(network, objective, [batch], torch.device("cpu"), dtype)
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(system: str, dtype: Any) -> Step | None:
    """A step of the Hub's class on the same examples, one a row; None where there is no class."""
    import torch
    import transformers

    from ziggurat.errors import UserError
    from ziggurat.evaluate.heldout import autocast
    from ziggurat.nn import spec
    from ziggurat.systems import SYSTEMS
    from ziggurat.systems.hub import to_hub

    network, _, batch = example(system)
    page = SYSTEMS[system]
    if not page.classes or not page.loads:
        return None
    models = []
    for architecture in (
        [None] if not isinstance(network.spec.model, spec.Adversaries) else ["ElectraForMaskedLM", "ElectraForPreTraining"]
    ):
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = to_hub(
                    network.spec, network.state_dict(), None, page, f"{folder}/hf", architecture=architecture, dropout=0.0
                )
            except UserError:
                return None
            models.append(getattr(transformers, made.architecture).from_pretrained(f"{folder}/hf").train())
    inputs = hub_inputs(batch)
    parameters = [p for model in models for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        for model in models:
            with autocast(torch.device("cpu"), dtype):
                loss = model(
                    **(inputs if not model.__class__.__name__.endswith("ForPreTraining") else labelled(model, inputs))
                ).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def labelled(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a pre-training class: labels of every token for a discriminator, labels of two kinds for BERT's."""
    import torch

    given = dict(inputs)
    name = model.__class__.__name__
    if name.startswith("Electra"):
        given["labels"] = (inputs["labels"] >= 0).long()
    else:
        second = "sentence_order_label" if name.startswith("Albert") else "next_sentence_label"
        given[second] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
    return given


def hub_inputs(batch: Any) -> dict[str, Any]:
    """Rows of the batch as the Hub takes them: input ids, and labels with -100 where nothing is asked."""
    import torch

    def rows(stream: Any, fill: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(fill.reshape(-1, stream.row).astype(np.int64)))

    name = "decoder" if "decoder" in batch.streams else "text"
    stream = batch.streams[name]
    labels = np.full(len(stream.content), -100)
    for target in batch.targets.values():
        if target.stream == name and target.at == "token" and np.asarray(target.value).dtype.kind == "i" and len(target.value):
            labels[target.index] = target.value
    content = np.maximum(stream.content, 0)
    if name == "text":
        return {"input_ids": rows(stream, content), "labels": rows(stream, labels)}
    source = batch.streams["encoder"]
    return {
        "input_ids": rows(source, source.content),
        "decoder_input_ids": rows(stream, content),
        "labels": rows(stream, labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    import torch

    from ziggurat.systems import SYSTEMS

    torch.set_num_threads(args.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    tokens = ROWS * LENGTH
    print("| system | objective | tokens/s | the Hub's class, tokens/s | ours is faster by |\n|---|---|---|---|---|")
    for system in args.only.split(",") if args.only else SYSTEMS:
        contestants = [step for step in (ours(system, dtype), theirs(system, dtype)) if step is not None]
        best = [float("inf")] * len(contestants)
        for turn in range(args.rounds + 1):
            for n, step in enumerate(contestants):
                began = time.perf_counter()
                step()
                if turn:  # the first is for warming up
                    best[n] = min(best[n], time.perf_counter() - began)
        other = ["", ""] if len(best) < 2 else [f"{tokens / best[1]:,.0f}", f"{best[1] / best[0]:.2f}x"]
        kind = SYSTEMS[system].objective["kind"]
        print(f"| {system} | {kind} | {tokens / best[0]:,.0f} | {other[0]} | {other[1]} |", flush=True)
        del contestants
        gc.collect()


if __name__ == "__main__":
    main()
