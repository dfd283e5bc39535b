"""Adaptation against forgetting: what each arm gains on a domain and loses on general text, over seeds, from two starts.

    ZIGGURAT_DATA=... [ZIGGURAT_MINILM=...] python benchmarks/forgetting.py [--starts own,minilm] [--write docs/results/forgetting.md]

Starts: `own`, a GPT-2 of 4 layers of 256 trained here on Wikipedia (a masked language model of this size and budget stays on the plateau of word frequencies,
where there is nothing to forget: docs/log.md), and `minilm`, a published encoder, which has no masked-LM head and is first trained with a new one on the same text. From each, every arm adapts to two domains (computing documentation, film reviews) with the same budget, for every seed; arms that are
not of the main comparison to the first domain only. Nothing is fine-tuned: gain and forgetting are held-out losses before and after, with the same masks.

A killed run goes on where it was; a finished trial is only read. Trials lie in runs/forgetting-<start>/trials.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = {"layers": 4, "width": 256, "heads": 4, "mlp": 1024}
DOMAINS = {"tech": ("tech-docs", 4000), "reviews": ("reviews-imdb-unlabelled", 5000)}
KEEP = 0.9
"""An arm may be recommended if it keeps this share of plain adaptation's gain."""


def arms(rate: float, layers: int = 4) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Arm -> (on both domains, what it adds to the stage); `rate` is plain adaptation's peak, `layers` the model's."""
    gentle = {"optim": {"lr": 0.3 * rate}, "schedule": {"kind": "cosine", "warmup": 0.01, "floor": 0.1}}
    return {
        "plain": (True, {}),
        "re-warm to 0.3, cosine to a tenth": (True, gentle),
        "replay 5%": (True, {"replay": {"general": 0.05}}),
        "replay 10%": (True, {"replay": {"general": 0.1}}),
        "replay 25%": (True, {"replay": {"general": 0.25}}),
        "L2 to start 30": (True, {"anchor": {"l2": 30}}),
        "L2 to start 100": (True, {"anchor": {"l2": 100}}),
        "replay 10% and L2 30": (True, {"replay": {"general": 0.1}, "anchor": {"l2": 30}}),
        "EWC 30": (False, {"anchor": {"ewc": 30, "tokens": 30_000}}),
        "layer decay 0.7": (False, {"optim": {"lr": rate, "layer_decay": 0.7}}),
        "freeze embeddings and half": (False, {"freeze": {"embeddings": True, "layers": layers // 2}}),
        "LoRA 16": (False, {"lora": {"rank": 16, "alpha": 32, "targets": ["q", "k", "v", "out", "up", "down"]}, "optim": {"lr": 5 * rate}}),
        "distillation 0.5": (False, {"distill": {"weight": 0.5, "temperature": 2.0}}),
    }  # fmt: skip


def recipe_of(start: str, args: argparse.Namespace) -> dict[str, Any]:
    """All stages of one start: the general one, and an adaptation an arm and domain."""
    data = os.environ["ZIGGURAT_DATA"]
    own = start == "own"
    rate, tokens, looked = (5e-4, args.tokens, 30_000) if own else (2e-4, args.minilm_tokens, 10_000)
    objective = {"kind": "clm" if own else "mlm"}
    general: dict[str, Any] = {"stage": "pretrain", "name": "general", "data": "general", "objective": objective}
    if own:
        general |= {"tokens": args.general, "optim": {"lr": 1e-3}}
    else:
        general |= {"init": os.environ["ZIGGURAT_MINILM"], "tokens": args.minilm_general, "optim": {"lr": 4e-4}}
    stages = [general]
    for domain in DOMAINS:
        for arm, (both, extra) in arms(rate, 4 if own else 6).items():
            if domain == "tech" or both:
                plain = {
                    "stage": "dapt",
                    "init": "general",
                    "data": domain,
                    "objective": objective,
                    "tokens": tokens,
                    "optim": {"lr": rate},
                }
                stages.append({**plain, "name": name_of(domain, arm), **extra})
    return {
        "name": f"forgetting-{start}{args.suffix}",
        "system": "gpt2/tiny" if own else "bert",
        **({"model": MODEL, "tokenizer": {"kind": "bpe", "vocab": 8000, "sample": 6_000_000}} if own else {}),
        "sources": {
            "general": {"path": f"{data}/wiki-en/train-00.jsonl.xz", "valid": f"{data}/wiki-en/valid.jsonl.xz"},
            **{
                name: {"path": f"{data}/{folder}/train.jsonl.xz", "valid": f"{data}/{folder}/valid.jsonl.xz", "limit": limit}
                for name, (folder, limit) in DOMAINS.items()
            },
        },
        "defaults": {"length": 128, "batch": {"tokens": 1024}, "evaluate": {"tokens": min(looked, args.looked or looked)}, "save": {"every": 200, "keep": 1}},
        "stages": stages,
    }  # fmt: skip


def name_of(domain: str, arm: str) -> str:
    return f"{domain}-" + "".join(c if c.isalnum() else "-" for c in arm).strip("-")


def trial(run: Any, stage: Any, seed: int, folder: Path) -> dict[str, Any]:
    """One adaptation, run or read: gain, forgetting, seconds, and of plain adaptation the line between start and end."""
    from ziggurat.atomic import write_json
    from ziggurat.checkpoint import format as checkpoints
    from ziggurat.pipeline import interpolation
    from ziggurat.pipeline import run as running
    from ziggurat.train import job as jobs
    from ziggurat.train.adaptation import Interpolate, shift

    result = folder / "result.json"
    if not result.exists():
        job = running.job_of(run, running.Training(stage, folder, seed, "general", f"{stage.title}, seed {seed}"))
        outcome = jobs.run_stage(folder, job)
        moved = shift(stage, outcome.before, outcome.held_out)
        assert moved is not None
        found: dict[str, Any] = {
            "gain": sum(moved.gain.values()),
            "forgetting": moved.forgetting["general"],
            "seconds": outcome.seconds,
            "tokens": outcome.tokens,
        }
        if stage.title.endswith("-plain"):
            saved = checkpoints.load(jobs.trained(folder, outcome.steps))
            line = interpolation.sweep(stage, job, run.scorer(run.reads(stage, "general")), saved, Interpolate(points=6))
            shifts = [(p.share, shift(stage, line.points[0].found, p.found)) for p in line.points]
            found["line"] = [[share, sum(s.gain.values()), s.forgetting["general"]] for share, s in shifts if s is not None]
        write_json(result, found)
    for heavy in folder.glob("step-*"):
        shutil.rmtree(heavy)
    return dict(json.loads(result.read_text("utf-8")))


def measured(start: str, args: argparse.Namespace, rows: dict[str, Any], write: Any) -> None:
    """All trials of a start into rows[start, domain, arm] = {seed: trial}."""
    from ziggurat.pipeline import run as running

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        json.dump(recipe_of(start, args), file)
        file.flush()
        recipe = running.load_recipe(file.name)
    folder = running.RUNS / recipe.name
    with running.session(folder) as signals:
        run = running.begin(recipe, folder, signals)
        first = recipe.stages[0]
        run.done["general"] = running.train(run, running.Training(first, folder / "general", recipe.seed, str(first.init)))
        rows[start] = {"start": run.done["general"].outcome.held_out}
        by_title = {s.title: s for s in recipe.stages}
        for seed in range(args.seeds):
            for domain in DOMAINS:
                for arm in arms(1.0):
                    stage = by_title.get(name_of(domain, arm))
                    if stage is not None and (not args.only or arm in args.only.split(",")):
                        found = trial(run, stage, seed, folder / "trials" / f"{stage.title}-{seed}")
                        rows[start].setdefault((domain, arm), {})[seed] = found
                        print(
                            f"{start}, {domain}, {arm}, seed {seed}: gain {found['gain']:.3f}, forgetting {found['forgetting']:+.3f}",
                            file=sys.stderr,
                        )
            write()


def with_line(found: dict[Any, Any]) -> dict[Any, Any]:
    """The trials of a start, and as arms of their own the points of plain adaptation's line."""
    made = {key: value for key, value in found.items() if key != "start"}
    for domain in DOMAINS:
        for n in (2, 3, 4):  # shares 0.4, 0.6, 0.8
            plain = made.get((domain, "plain"), {})
            line = {seed: t["line"][n] for seed, t in plain.items()}
            if line:
                share = next(iter(line.values()))[0]
                made[domain, f"interpolation {share:.1f}"] = {
                    seed: {"gain": gain, "forgetting": lost, "seconds": plain[seed]["seconds"]}
                    for seed, (_, gain, lost) in line.items()
                }
    return made


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def on_line(plain: dict[int, Any], arm: dict[int, Any]) -> float:
    """What plain adaptation's line has forgotten where it has gained as much as the arm, seed by seed; nan beyond its end."""
    lost = []
    for seed, t in plain.items():
        gain = arm[seed]["gain"]
        for (_, g0, f0), (_, g1, f1) in zip(t["line"], t["line"][1:], strict=False):
            if g0 <= gain <= g1 and g1 > g0:
                lost.append(f0 + (f1 - f0) * (gain - g0) / (g1 - g0))
                break
    return statistics.mean(lost) if len(lost) == len(plain) and lost else float("nan")


def page(rows: dict[str, Any], args: argparse.Namespace) -> str:
    from ziggurat.evaluate.heldout import main_loss

    lines = [
        "# Adaptation against forgetting",
        "",
        f"    ZIGGURAT_DATA=... ZIGGURAT_MINILM=... {args.command}",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {args.commit}; {args.machine}; Python {platform.python_version()}, torch {version('torch')}. Seeds 0 to {args.seeds - 1} of the",
        "adaptation (order, masks); the start is the same for all. Losses are nats a predicted token on held-out text, before and after, with the same masks.",
        "*Gain*: fall of the loss on the domain; *forgetting*: rise of the loss on Wikipedia; mean ± standard deviation over seeds. *On the line*: what",
        "plain adaptation, interpolated back toward its start until it has the same gain, has forgotten; an arm pays if it has forgotten less than that.",
    ]
    chosen: dict[str, list[tuple[float, float]]] = {}
    for start, found in rows.items():
        trials = with_line(found)
        before = ", ".join(f"{name} {numbers[main_loss(numbers)]:.3f}" for name, numbers in found["start"].items())
        lines += ["", f"## From {start}", "", f"Held-out losses at the start: {before}."]
        for domain in DOMAINS:
            here = {arm: t for (d, arm), t in trials.items() if d == domain}
            if "plain" not in here:
                continue
            gains = {arm: [x["gain"] for x in t.values()] for arm, t in here.items()}
            whole = statistics.mean(gains["plain"])
            lines += [
                "",
                f"### {DOMAINS[domain][0]}",
                "",
                "| arm | gain | of plain's | forgetting | on the line | seconds |",
                "|---|---|---|---|---|---|",
            ]
            for arm, t in sorted(here.items(), key=lambda item: statistics.mean(x["forgetting"] for x in item[1].values())):
                gain, lost = statistics.mean(gains[arm]), [x["forgetting"] for x in t.values()]
                same = on_line(here["plain"], t)
                share = gain / whole if whole else float("nan")
                line = f"{same:+.3f}" if same == same else "beyond"
                lines.append(
                    f"| {arm} | {spread(gains[arm])} | {share:.0%} | {spread(lost)} | {line} | {statistics.mean(x['seconds'] for x in t.values()):.0f} |"
                )
                chosen.setdefault(arm, []).append((share, statistics.mean(lost)))
    lines += ["", "## What follows", "", *advice(chosen)]
    return "\n".join(lines) + "\n"


def advice(chosen: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The arm that forgets least on the mean over starts and domains, of those measured on all and keeping KEEP of plain's gain."""
    most = max((len(v) for v in chosen.values()), default=0)
    fit = {arm: v for arm, v in chosen.items() if len(v) == most and statistics.mean(s for s, _ in v) >= KEEP}
    if not fit:
        return ["Nothing was measured yet."]
    mean = {arm: (statistics.mean(s for s, _ in v), statistics.mean(f for _, f in v)) for arm, v in fit.items()}
    best = min(mean, key=lambda arm: mean[arm][1])
    share, lost = mean[best]
    return [
        f"Of the arms that were measured on every start and domain ({most}) and keep at least {KEEP:.0%} of plain adaptation's gain, **{best}** forgets least: {lost:+.3f} on the mean",
        f"against {mean.get('plain', (1, float('nan')))[1]:+.3f} of plain adaptation, at {share:.0%} of its gain.",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", default="own,minilm" if "ZIGGURAT_MINILM" in os.environ else "own")
    parser.add_argument("--general", type=int, default=3_000_000, help="tokens of the own general model")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens of an adaptation from it")
    parser.add_argument("--minilm-general", type=int, default=600_000, help="tokens of MiniLM and its new head")
    parser.add_argument("--minilm-tokens", type=int, default=80_000, help="tokens of an adaptation from MiniLM")
    parser.add_argument("--looked", type=int, help="most held-out tokens of a source")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="arms, by their names, with commas")
    parser.add_argument("--suffix", default="", help="behind the names of the run folders")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--commit", default="of this tree")
    parser.add_argument("--machine", default="two cores")
    args = parser.parse_args()
    args.command = "python " + " ".join(["benchmarks/forgetting.py", *sys.argv[1:]])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    rows: dict[str, Any] = {}

    def write() -> None:
        if args.write:  # what is done is written, whatever comes next
            args.write.write_text(page(rows, args), "utf-8")

    for start in args.starts.split(","):
        measured(start, args, rows, write)
    print(page(rows, args))


if __name__ == "__main__":
    main()
