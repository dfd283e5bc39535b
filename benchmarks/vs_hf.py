"""The same masked-LM training with Hugging Face's `Trainer` and with ziggurat, step by step in turn: tokens a second and their ratio.

    python benchmarks/vs_hf.py [--steps 20] [--threads 1] [--bf16-steps 3] [--seed 0]

Equal: initial weights (ours, exported), packed rows and masks (one document of 128 tokens a row, so that the Hub's model needs no
mask), dropout 0, AdamW's numbers, schedule, clipping. In float32 every step's loss must agree within 1e-3, or the script fails.
A bf16 contestant is compared with ours in bf16, one in float32 with ours in float32; the goal against the Trainer's defaults is judged at our defaults. Each contestant is a process of its own; they take steps one after the other, and the best step of each counts (the first two are
left out). With one thread the clock is CPU time, which other jobs on the machine disturb little; with more it is wall time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

VOCAB, LENGTH, ROWS = 30_000, 128, 16
LAYERS, WIDTH, HEADS = 4, 256, 4
OPTIM: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
CLIP = 1.0
AGREE = 1e-3

OURS, OURS_BF16 = "ziggurat, fp32", "ziggurat, bf16"
TRAINERS: dict[str, dict[str, Any]] = {
    "Trainer, defaults (fp32)": {},
    "Trainer, SDPA, fused AdamW (fp32)": {"attn": "sdpa", "optim": "adamw_torch_fused"},
    "Trainer, SDPA, fused AdamW, bf16": {"attn": "sdpa", "optim": "adamw_torch_fused", "bf16": True},
}
DEFAULTS = "Trainer, defaults (fp32)"
GOALS = {DEFAULTS: 4.0, "Trainer, SDPA, fused AdamW, bf16": 2.5}
"""Times as fast. Against the Trainer's defaults ours are at their defaults too, which is bf16 where the hardware has it."""


def batches(steps: int, seed: int) -> list[Any]:
    """One masked batch of ROWS rows for every step: Zipf ids, one document a row."""
    from ziggurat.context import Context, Layout, Vocab, mix
    from ziggurat.data.pack import pack, split
    from ziggurat.objectives.masked import Masked
    from ziggurat.types import Part, Tokens

    ctx = Context(Vocab(VOCAB, 0, 4, 1, 3, (0, 1, 2, 3, 4)), Layout((2,), (), (3,)), LENGTH, seed=seed)
    documents, room = steps * ROWS, ctx.layout.room(LENGTH)
    ids = (5 + np.random.default_rng(seed).zipf(1.2, documents * room) % (VOCAB - 5)).astype(np.int32)
    words, bounds = np.ones(len(ids), bool), np.arange(documents + 1) * room
    part = Part(ids, bounds, words, words, np.zeros((0, 3), np.int64), np.zeros(documents + 1, np.int64))
    tokens = Tokens({"text": part}, mix(np.arange(documents, dtype=np.uint64)))
    objective = Masked()
    packed = pack(objective.corrupt(objective.form(tokens, ctx), ctx), LENGTH, 0)
    return split(packed, np.arange(0, documents + 1, ROWS))


def network(seed: int) -> Any:
    import torch

    from ziggurat.nn.network import NetworkModel
    from ziggurat.nn.spec import Network, VocabHead
    from ziggurat.systems import SYSTEMS

    size = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mlp": 4 * WIDTH}
    net = NetworkModel(Network(model=SYSTEMS["bert"].sized("mini", size, VOCAB), heads={"lm": VocabHead()}))
    net.initialise(torch.Generator().manual_seed(seed))
    return net


class Pace:
    """A contestant's side of the race: wait for the sign, take a step, say how long it took and what it lost."""

    def __init__(self, pipe: Connection, threads: int):
        self.pipe = pipe
        self.clock = time.process_time if threads == 1 else time.perf_counter

    def wait(self) -> None:
        self.pipe.recv()
        self.started = self.clock()

    def done(self, loss: float) -> None:
        self.pipe.send((self.clock() - self.started, loss))


def run_ours(pipe: Connection, args: argparse.Namespace, folder: str, precision: str) -> None:
    import torch

    from ziggurat.nn.attention import pick
    from ziggurat.objectives.masked import Masked
    from ziggurat.train.loop import Plan, Progress, train
    from ziggurat.train.optim import build_optimizer
    from ziggurat.train.stage import Optim

    torch.set_num_threads(args.threads)
    net = network(args.seed)
    net.set_dropout(0.0)
    pace, made = Pace(pipe, args.threads), batches(args.steps, args.seed)

    def paced() -> Iterator[Any]:
        for batch in made:
            pace.wait()
            yield batch

    dtype = getattr(torch, precision)
    kernel = pick("full", device="cpu", dtype=dtype, length=LENGTH, dropout=0.0, masked=False)
    pipe.send(f"{kernel} attention, sparse head, fused AdamW")
    plan = Plan(args.steps, 1, CLIP, lambda step: OPTIM["lr"] * (1 - step / args.steps), 1, 0, 0)
    train(
        net, Masked(), paced(), build_optimizer(net, Optim(**OPTIM)), plan, Progress(), dtype=dtype,
        write=lambda step, numbers: pace.done(numbers["loss"]), evaluate=lambda net: {}, save=lambda progress: None,
        show=lambda progress, numbers: None, stop=lambda: False,
    )  # fmt: skip


def run_trainer(pipe: Connection, args: argparse.Namespace, folder: str, how: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    how = dict(how)
    attention = {"attn_implementation": how.pop("attn")} if "attn" in how else {}
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, **attention)
    rows = []
    for batch in batches(args.steps, args.seed):
        content, target = batch.streams["text"].content, batch.targets["mlm"]
        labels = np.full(len(content), -100)
        labels[target.index] = target.value
        pairs = zip(content.reshape(ROWS, LENGTH), labels.reshape(ROWS, LENGTH), strict=True)
        rows += [{"input_ids": torch.tensor(a, dtype=torch.long), "labels": torch.tensor(b)} for a, b in pairs]
    pace = Pace(pipe, args.threads)

    class Paced(transformers.Trainer):
        loss = torch.zeros(())

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.loss = super().training_step(*args, **kwargs)
            return self.loss

    class Signs(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            pace.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pace.done(float(trainer.loss))
            if state.global_step < state.max_steps:
                pace.wait()

    settings = transformers.TrainingArguments(
        tempfile.mkdtemp(dir=folder), use_cpu=True, max_steps=args.steps, per_device_train_batch_size=ROWS,
        learning_rate=OPTIM["lr"], weight_decay=OPTIM["weight_decay"], max_grad_norm=CLIP, seed=args.seed, report_to="none",
        save_strategy="no", disable_tqdm=True, **how,
    )  # fmt: skip
    trainer = Paced(model=model, args=settings, train_dataset=rows, callbacks=[Signs()])
    pipe.send(f"attention {model.config._attn_implementation}, {getattr(settings.optim, 'value', settings.optim)}")
    trainer.train()


def race(args: argparse.Namespace, folder: str) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """For each contestant, the (seconds, loss) of its steps, and how it is configured."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, configured = {}, [], {}
    ours = {OURS: "float32", OURS_BF16: "bfloat16"}
    for name in (*ours, *TRAINERS):
        if "bf16" in name and not args.bf16_steps:
            continue
        here, there = spawn.Pipe()
        target: Any = run_ours if name in ours else run_trainer
        more = (ours[name],) if name in ours else (TRAINERS[name],)
        process = spawn.Process(target=target, args=(there, args, folder, *more), daemon=True)
        process.start()
        there.close()
        processes.append(process)
        pipes[name] = here
        configured[name] = here.recv()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for step in range(args.steps):
        for name, pipe in pipes.items():
            if "bf16" in name and step >= args.bf16_steps:
                continue
            pipe.send("go")
            taken[name].append(pipe.recv())
            seconds, loss = taken[name][-1]
            print(f"  step {step + 1:2} {name:35} {seconds:7.2f} s  loss {loss:.5f}", file=sys.stderr, flush=True)
    for process in processes:
        process.terminate()
    return taken, configured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--bf16-steps", type=int, default=3, help="steps in bf16, which takes minutes without hardware for it; 0 leaves it out"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = os.getloadavg()[0]

    import torch

    from ziggurat.systems.hub import to_hub
    from ziggurat.train.loop import precision_of

    with tempfile.TemporaryDirectory() as folder:
        net = network(args.seed)
        to_hub(net.spec, net.state_dict(), None, "bert", f"{folder}/hf", dropout=0.0, ids={"pad_token_id": 0})
        taken, configured = race(args, f"{folder}/hf")
    print(f"BERT {LAYERS}x{WIDTH}, vocabulary {VOCAB:,}, {ROWS} rows of {LENGTH} tokens a step, {args.threads} thread(s)")
    taken = {name: steps for name, steps in taken.items() if steps}
    skip = {name: min(2, len(steps) - 1) for name, steps in taken.items()}
    best = {name: min(s for s, _ in steps[skip[name] :]) for name, steps in taken.items()}
    half = precision_of("auto", torch.device("cpu")) == torch.bfloat16
    for name, steps in taken.items():
        apart = max(abs(a - b) for (_, a), (_, b) in zip(steps, taken[OURS], strict=False))
        rival = OURS_BF16 if "bf16" in name else OURS
        ratio, goal = best[name] / best[rival], ""
        own = OURS_BF16 if name == DEFAULTS and half and OURS_BF16 in best else rival
        if name in GOALS:
            against = best[name] / best[own]
            goal = f"  goal {GOALS[name]}x: {'reached' if against >= GOALS[name] else 'NOT reached'} by {own}, {against:.2f}x"
        both = list(zip(steps, taken[rival], strict=False))[skip[name] :]
        paired = statistics.median(theirs / ours for (theirs, _), (ours, _) in both)
        print(
            f"{name:35} {ROWS * LENGTH / best[name]:6.0f} tokens/s  {rival} is {ratio:5.2f}x as fast "
            f"(median step {paired:5.2f}x)  losses within {apart:.1e}{goal}   [{configured[name]}]"
        )
        assert "bf16" in name or apart <= AGREE, f"{name}: losses differ by {apart}"
    load = max(before, os.getloadavg()[0])
    print(f"load average {load:.1f}" + (": the machine is busy, do not quote absolute rates" if load > 2 else ""))


if __name__ == "__main__":
    main()
