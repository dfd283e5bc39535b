"""Tokens a second of every system at one size on the same text, next to the Hub's class of it where there is one.

    python benchmarks/systems_speed.py [--rounds 7] [--threads 2] [--precision both] [--only bert,t5] [--profile]

One size (4 layers, width 256, 4 heads, vocabulary 8,000), 16 examples a step whose texts fill 128 tokens, a forward and a backward pass and
a step of fused AdamW; each system with its own objective. Ours and the Hub's class take steps in turn in one process, and the best step of each
counts; with one thread by CPU time, which other jobs on the machine disturb little. Tokens are those of the text that a step reads, for both.

Like with like: the Hub's class gets the same corrupted examples and is asked for the same tokens, one example a row, padded to the longest with an
attention mask where they differ in length (ours are packed). It scores every row over the vocabulary, as its classes do, XLNet's and
ProphetNet's excepted, which have query rows of their own and get what they need for them. Freed memory is kept between
steps for both, which is in the Hub's favour: its Trainer does not ask for that.
What is not alike, because the Hub has no class for it: BertForPreTraining learns masked LM and a sentence class; StructBERT's objective has a
third part, word order, whose tokens are added to its labels; albert, macbert and modelx ask an ALBERT or BERT class for their sentence order in the
same way; electra is compared with its two classes one after the other, without the sampling between them; unilm and ernie_gen have rows
beside the text that the Hub's class reads as if they were text.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LAYERS, WIDTH, HEADS, VOCAB, LENGTH, ROWS = 4, 256, 4, 8000, 128, 16
DIALS = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mlp": 4 * WIDTH}
Step = Callable[[], None]


def text(documents: int, room: int, seed: int = 0) -> Any:
    """Documents of `room` tokens of Zipf ids, with words of one to three tokens and a sentence about every 20."""
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


class Example:
    """A system's network, its objective, and a batch of ROWS corrupted examples whose texts fill LENGTH tokens."""

    def __init__(self, system: str):
        import torch
        from pydantic import TypeAdapter

        from ziggurat.context import Context, Layout, Vocab
        from ziggurat.data.pack import pack, take
        from ziggurat.nn.network import NetworkModel
        from ziggurat.nn.spec import EncoderDecoder, Network
        from ziggurat.objectives import AnyObjective
        from ziggurat.systems import SYSTEMS

        page = SYSTEMS[system]
        self.objective = TypeAdapter(AnyObjective).validate_python(dict(page.objective))
        model = self.objective.equipped(page.sized("mini" if "mini" in page.sizes else next(iter(page.sizes)), DIALS, VOCAB))
        names = {f"<extra_id_{n}>": 100 + n for n in range(90)} | {"[ATTN]": 99}
        vocab = Vocab(VOCAB, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(99, 190)), names)
        layout = Layout((), (), (3,)) if page.template in ("gpt2", "t5") else Layout((2,), (3,), (3,), (0, 1))
        more: dict[str, Any] = {"visibility": model.visibility}
        if isinstance(model, EncoderDecoder):
            more |= {"start": 2, "streams": ("encoder", "decoder")}
        ctx = Context(vocab, layout, LENGTH, **more)
        formed = self.objective.form(self.objective.grouped(text(4 * ROWS, 5 * LENGTH)), ctx)
        lengths = formed.streams["text"].lengths
        fullest = np.argsort(-lengths, kind="stable")[:ROWS]
        self.tokens = int(lengths[fullest].sum())
        self.examples = self.objective.corrupt(take(formed, np.sort(fullest)), ctx)
        self.batch = pack(self.examples, self.objective.rows(ctx), vocab.pad)
        self.network = NetworkModel(Network(model=model, heads=dict(self.objective.heads(model))))
        self.network.initialise(torch.Generator().manual_seed(0))


def ours(made: Example, dtype: Any) -> Step:
    """A step of ours."""
    import torch

    from ziggurat.train.loop import backward
    from ziggurat.train.optim import build_optimizer
    from ziggurat.train.stage import Optim

    optimizer = build_optimizer(made.network.train(), Optim(lr=1e-4))

    def step() -> None:
        backward(made.network, made.objective, [made.batch], torch.device("cpu"), dtype)
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(system: str, made: Example, dtype: Any) -> Step | None:
    """A step of the Hub's class on the same examples, one a row; None where there is no class."""
    import torch
    import transformers

    from ziggurat.evaluate.heldout import autocast
    from ziggurat.nn import spec
    from ziggurat.systems import SYSTEMS
    from ziggurat.systems.hub import to_hub

    page = SYSTEMS[system]
    if not page.classes or not page.loads:
        return None
    twins = isinstance(made.network.spec.model, spec.Adversaries)
    models = []
    for architecture in ["ElectraForMaskedLM", "ElectraForPreTraining"] if twins else [None]:
        with tempfile.TemporaryDirectory() as folder:
            ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
            tensors = made.network.state_dict()
            done = to_hub(
                made.network.spec, tensors, None, system, f"{folder}/hf", dropout=0.0, architecture=architecture, ids=ids
            )
            models.append(getattr(transformers, done.architecture).from_pretrained(f"{folder}/hf").train())
    given = [hub_inputs(model, made.examples) for model in models]
    optimizer = torch.optim.AdamW([p for model in models for p in model.parameters()], lr=1e-4, fused=True)

    def step() -> None:
        for model, inputs in zip(models, given, strict=True):
            with autocast(torch.device("cpu"), dtype):
                loss = model(**inputs).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def hub_inputs(model: Any, examples: Any) -> dict[str, Any]:
    """The examples as the Hub's class takes them: ids, masks where rows are padded, and labels with -100 where nothing is asked."""
    import torch

    kind = model.__class__.__name__
    streams = examples.streams
    last = "decoder" if "decoder" in streams else "text"
    labels = np.full(len(streams[last].content), -100)
    for target in examples.targets.values():
        if target.stream == last and target.at == "token" and np.asarray(target.value).dtype.kind == "i":
            labels[target.index] = target.value
    rows = {name: padded(stream.content, stream.lengths, 0) for name, stream in streams.items()}
    answers = padded(labels, streams[last].lengths, -100)
    if kind.startswith(("ProphetNet", "XLNet")):  # rows of queries stand behind the text; the class makes its own
        content, queries = rows[last], rows[last] < 0
        text = (~queries).sum(1).max() if kind.startswith("XLNet") else examples.streams[last].lengths.max() // 3
        rows[last] = np.maximum(content[:, :text], 0)
        answers = answers[:, text : 2 * text]
    given = {"input_ids": rows[last], "labels": answers}
    if last == "decoder":
        given = {"input_ids": rows["encoder"], "decoder_input_ids": rows["decoder"], "labels": answers}
        short = examples.streams["encoder"].lengths
    else:
        short = examples.streams[last].lengths
    made = {name: torch.from_numpy(np.ascontiguousarray(value, np.int64)) for name, value in given.items()}
    width = made["input_ids"].shape[1]
    if short.min() < width and not kind.startswith(("ProphetNet", "XLNet")):
        made["attention_mask"] = torch.arange(width)[None] < torch.from_numpy(short)[:, None]
    if kind.startswith("XLNet"):
        made |= xlnet_inputs(examples.streams[last], width)
    if kind.endswith("ForPreTraining"):
        if kind.startswith("Electra"):
            made["labels"] = (made["labels"] >= 0).long()
        else:
            second = "sentence_order_label" if kind.startswith("Albert") else "next_sentence_label"
            made[second] = torch.zeros(len(made["input_ids"]), dtype=torch.long)
    return made


def padded(values: np.ndarray, lengths: np.ndarray, fill: int) -> np.ndarray:
    """[D, longest]"""
    made = np.full((len(lengths), int(lengths.max())), fill, np.int64)
    made[np.arange(made.shape[1]) < lengths[:, None]] = values
    return made


def xlnet_inputs(stream: Any, width: int) -> dict[str, Any]:
    """Who may look at whom, and which places are asked: our content rows' visibility and our query rows' positions."""
    import torch

    visible = stream.visibility
    number, places = [], []
    for lo, hi in zip(stream.bounds[:-1], stream.bounds[1:], strict=True):
        clock, opens = visible.clock[lo : lo + width], visible.opens[lo : lo + width]
        number.append(opens[None, :] > clock[:, None])
        places.append(stream.position[lo + width : hi])
    most = max(map(len, places))
    mapping = torch.zeros(len(number), most, width)
    for row, place in enumerate(places):
        mapping[row, torch.arange(len(place)), torch.from_numpy(place.astype(np.int64))] = 1.0
    return {"perm_mask": torch.from_numpy(np.stack(number)).float(), "target_mapping": mapping}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="fp32")
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true", help="print where the time of both goes")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    import torch
    import transformers

    from ziggurat.systems import SYSTEMS
    from ziggurat.train.memory import keep_freed_memory

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(
        "| system | objective | precision | tokens/s | the Hub's class, tokens/s | ours is faster by: best step | median of paired steps |"
    )
    print("|---|---|---|---|---|---|---|")
    for system in args.only.split(",") if args.only else SYSTEMS:
        for precision in ("fp32", "bf16") if args.precision == "both" else (args.precision,):
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
            made = Example(system)
            steps = [step for step in (ours(made, dtype), theirs(system, made, dtype)) if step is not None]
            taken: list[list[float]] = [[] for _ in steps]
            for turn in range(args.rounds + 2):
                for step, seconds in zip(steps, taken, strict=True):
                    began = clock()
                    step()
                    if turn > 1:  # the first two are for warming up
                        seconds.append(clock() - began)
            best = [min(seconds) for seconds in taken]
            other = [""] * 3
            if len(best) == 2:
                paired = statistics.median(b / a for a, b in zip(*taken, strict=True))
                other = [f"{made.tokens / best[1]:,.0f}", f"{best[1] / best[0]:.2f}x", f"{paired:.2f}x"]
            kind = SYSTEMS[system].objective["kind"]
            print(f"| {system} | {kind} | {precision} | {made.tokens / best[0]:,.0f} | {' | '.join(other)} |", flush=True)
            for step in steps if args.profile else ():
                with torch.profiler.profile() as found:
                    for _ in range(3):
                        step()
                print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
            del steps, made
            gc.collect()


if __name__ == "__main__":
    main()
