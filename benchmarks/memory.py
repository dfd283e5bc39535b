"""Peak memory of `ziggurat prepare` on generated text of two sizes: it must not grow with the corpus.

python benchmarks/memory.py --small 40 --large 400        (megabytes; exits 1 when the difference is over --limit)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
name: memory
system: bert/tiny
tokenizer: {kind: wordpiece, vocab: 8000, sample: 2_000_000}
sources: {text: {path: text.jsonl}}
stages: [{stage: pretrain, data: text, steps: 1}]
"""
MEASURE = "import resource, sys; from ziggurat.cli import app; app(['prepare', 'recipe.yaml'], standalone_mode=False); " + (
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def generate(path: Path, megabytes: float, seed: int = 0) -> None:
    """JSON lines of 200 to 8,000 characters over a vocabulary of 30,000 made-up words."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    pool = rng.choices(words, weights, k=2_000_000)
    written, limit = 0, megabytes * 2**20
    with path.open("w", encoding="utf-8") as file:
        while written < limit:
            start, count = rng.randrange(len(pool) - 1500), rng.randint(40, 1500)
            line = json.dumps({"text": " ".join(pool[start : start + count]).capitalize() + "."}) + "\n"
            file.write(line)
            written += len(line)


def peak(megabytes: float) -> tuple[float, float]:
    """Peak resident megabytes and seconds of preparing that much text, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder, "text.jsonl"), megabytes)
        Path(folder, "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURE], cwd=folder, capture_output=True, text=True, env=dict(os.environ))
        if done.returncode:
            sys.exit(done.stderr)
        return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=float, default=40)
    parser.add_argument("--large", type=float, default=400)
    parser.add_argument("--limit", type=float, default=60, help="megabytes the large one may need more")
    args = parser.parse_args()
    peaks = []
    for size in (args.small, args.large):
        most, seconds = peak(size)
        peaks.append(most)
        print(f"{size:6.0f} MB of text: peak {most:7.1f} MB, {seconds:6.1f} s", flush=True)
    more = peaks[1] - peaks[0]
    print(f"difference {more:.1f} MB (limit {args.limit:.0f})")
    sys.exit(more > args.limit)


if __name__ == "__main__":
    main()
