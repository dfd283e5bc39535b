"""`ziggurat evaluate` with a suite: checkpoints fine-tuned on every task, with several seeds, beside baselines; one table, one picture.

Running it again goes on where it was stopped, and computes nothing twice: see `suite_task`.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.config import given, spelled
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import metric_of
from ziggurat.evaluate.scores import Metric
from ziggurat.objectives.base import Objective
from ziggurat.pipeline.opened import Opened, called, open_checkpoint
from ziggurat.pipeline.run import Run
from ziggurat.pipeline.session import Signals, session
from ziggurat.pipeline.suite_answers import answer, baseline_answers
from ziggurat.pipeline.suite_files import load_suite
from ziggurat.pipeline.suite_notes import cut_prompts, cut_rows, lost_rows
from ziggurat.pipeline.suite_question import ROOT, CannotAsk, Question, question
from ziggurat.pipeline.suite_report import terminal_table, write_results
from ziggurat.pipeline.suite_results import Answers, Results, Score, TaskResult, averages, compare, score
from ziggurat.pipeline.worth import ROUNDING, shown
from ziggurat.train.recipe import TEXT_STAGES
from ziggurat.train.suite import Suite, Task

log = logging.getLogger(__name__)

NOTED = 0.02
"""The share of training rows left out as leaks above which the reader is told."""


def evaluate_suite(
    checkpoints: Sequence[Path | str],
    suite: Suite | Path | str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    command: Sequence[str] = (),
) -> Results:
    """Fine-tune the checkpoints on the suite's tasks, or find it done; results.html, .json and .csv in `folder`.

    `suite` is a built-in name, a file, or a suite; `folder` is evaluations/<suite> by default. Differences are those to the first
    checkpoint.

    Raises:
        UserError: no checkpoint, a mistake in the suite, or no task that can be scored.
        Stopped: a signal came in; the same call goes on.
    """
    spec = suite if isinstance(suite, Suite) else load_suite(suite, overrides)
    check(checkpoints, "no checkpoint was named", "ziggurat evaluate CHECKPOINT SUITE")
    opened = dict(zip(labels(checkpoints), map(open_checkpoint, checkpoints), strict=True))
    names = list(spec.only or spec.tasks)
    with session(ROOT) as signals:
        asked = {name: _questions(spec, name, opened) for name in names}  # mistakes show before anything is trained
        tasks = tuple(_task(spec, name, asked[name], signals) for name in names)
    found = [t for t in tasks if not t.without]
    reasons = "\n".join(f"  {t.task}: {t.without}" for t in tasks)
    check(found, f"no task of the suite {spec.suite} could be scored:\n{reasons}", "set ZIGGURAT_DATA, or take rows=hub")
    means, common = averages(tasks, list(opened))
    results = Results(
        spec.suite,
        spec.about,
        {label: str(o.folder) for label, o in opened.items()},
        spec.seeds,
        tasks,
        means,
        common,
        _facts(spec, opened, command),
    )
    write_results(folder or ROOT / spec.suite, results)
    return results


def evaluate_run(run: Run, suites: Sequence[Suite]) -> list[Results]:
    """A recipe's suites on the checkpoint of its last text stage; results in <run>/suites/<suite>, and the tables printed."""
    last = [done for done in run.done.values() if done.stage.stage in TEXT_STAGES][-1]
    found = []
    for suite in suites:
        folder = run.folder / "suites" / suite.suite
        found.append(evaluate_suite([last.folder], suite, folder=folder))
        show(found[-1], folder)
    return found


def show(results: Results, folder: Path) -> None:
    """Print the table, and where the page is."""
    from rich.console import Console

    console = Console(width=None if os.isatty(1) else 200)
    console.print(terminal_table(results))
    console.print(f"report: {folder / 'results.html'}")


def labels(checkpoints: Sequence[Path | str]) -> list[str]:
    """What tables call checkpoints: their folders' names, with as many folders above as make them differ."""
    paths = [Path(str(c)) for c in checkpoints]
    names = [called(str(c)) for c in checkpoints]
    for n in range(2, 6):
        if len(set(names)) == len(names):
            break
        whole = [Path(os.path.abspath(os.path.expandvars(p))).parts[-n:] for p in paths]
        names = ["/".join(parts) for parts in whole]
    check(len(set(names)) == len(names), "a checkpoint is named twice", "name each one once")
    return names


Asked = Mapping[str, Question | str]
"""By checkpoint: a task ready to be run, or why it cannot be."""


def _questions(suite: Suite, name: str, opened: Mapping[str, Opened]) -> Asked:
    found: dict[str, Question | str] = {}
    for label, checkpoint in opened.items():
        try:
            found[label] = question(suite, name, label, checkpoint)
        except CannotAsk as why:
            found[label] = str(why)
            log.info("%s, %s: not scored: %s", name, label, why)
    return found


def _task(suite: Suite, name: str, questions: Asked, signals: Signals) -> TaskResult:
    """All checkpoints and baselines on one task; without scores if they cannot be scored, so that the other tasks have theirs."""
    refused = {label: one for label, one in questions.items() if isinstance(one, str)}
    answers: dict[str, dict[int, Answers]] = {}
    asked: Question | None = None
    for label, one in questions.items():
        if isinstance(one, Question):
            seeds = suite.seeds if one.trains or one.shots else suite.seeds[:1]
            try:
                answers[label] = {seed: answer(one, seed, signals) for seed in seeds}
            except UserError as error:  # the other tasks and checkpoints can still be scored
                log.warning("%s, %s: not scored: %s", name, label, error)
                refused[label] = error.message
            else:
                asked = asked or one
    if asked is None:
        return _without(name, suite.tasks[name], "; ".join(dict.fromkeys(refused.values())))
    try:
        return _scores(suite, name, asked, questions, answers, refused)
    except UserError as error:
        log.warning("%s: not scored: %s", name, error)
        return _without(name, suite.tasks[name], error.message)


def _without(name: str, task: Task, reason: str) -> TaskResult:
    """A task that is not scored."""
    objective = task.objective
    kind, named = (objective.kind, getattr(objective, "metric", "")) if objective is not None else ("", "")
    return TaskResult(name, task.about, kind, named, True, "higher", without=reason)


def _scores(
    suite: Suite,
    name: str,
    asked: Question,
    questions: Asked,
    answers: Mapping[str, Mapping[int, Answers]],
    refused: Mapping[str, str],
) -> TaskResult:
    """A task that at least one checkpoint has answered, the first of them to `asked`."""
    task = suite.tasks[name]
    objective = task.objective
    assert objective is not None
    metric, further = metric_of(objective), further_metrics(task, objective)
    floor_runs = baseline_answers(asked, list(suite.seeds))
    floor = {label: float(np.mean([metric(r.gold, r.predicted) for r in runs.values()])) for label, runs in floor_runs.items()}
    scores = [score(label, "baseline", runs, metric, further, {}) for label, runs in floor_runs.items()]
    scores += [score(label, "checkpoint", runs, metric, further, floor) for label, runs in answers.items()]
    nothing = float("nan")
    scores += [Score(n, "checkpoint", {}, nothing, nothing, None, {}, None, {}, without=why) for n, why in refused.items()]
    first = next(iter(answers))
    drawn = asked.trains or bool(asked.shots)
    pairs = [compare((first, answers[first]), (o, answers[o]), metric, floor, drawn) for o in answers if o != first]
    train, test, leaks = asked.rows
    result = TaskResult(
        name,
        task.about,
        objective.kind,
        metric.name,
        metric.points,
        metric.better,
        train if asked.trains else asked.shots or 0,
        test,
        leaks,
        asked.stage.length,
        tuple(scores),
        tuple(pairs),
        (
            *_notes(scores, metric),
            *lost_rows(questions),
            *cut_rows(questions),
            *cut_prompts(asked.shots or 0, answers),
            *([_left_out(train, leaks)] if leaks > NOTED * train else []),
        ),
    )
    log.info("%s: %s", name, ", ".join(f"{s.model} {result.show(s.mean)}" for s in scores if s.scores))
    return result


def further_metrics(task: Task, objective: Objective) -> list[Metric]:
    """The task's other metrics."""
    return [metric_of(type(objective).model_validate({**given(objective), "metric": name})) for name in task.further]


def _left_out(rows: int, leaks: int) -> str:
    return f"{leaks:,} training rows were left out because they hold (nearly) a text of a test row; {rows:,} are left."


def _notes(scores: Sequence[Score], metric: Metric) -> list[str]:
    """Collapsed runs, and baselines that win."""
    notes = []
    for s in scores:
        for seed, why in s.collapsed.items():
            notes.append(f"{s.model}, seed {seed}: the run collapsed, {why} (score {shown(s.scores[seed], metric.points)}).")
    sign = 1 if metric.better == "higher" else -1
    floor = [s for s in scores if s.kind == "baseline" and np.isfinite(s.mean)]
    for s in scores:
        if s.kind == "checkpoint" and s.scores and floor:
            best = max(floor, key=lambda b: sign * b.mean)
            if sign * (best.mean - s.mean) > ROUNDING:
                notes.append(
                    f"the baseline {best.model} ({shown(best.mean, metric.points)}) beats {s.model} ({shown(s.mean, metric.points)})."
                )
    return notes


def _facts(suite: Suite, opened: Mapping[str, Opened], command: Sequence[str]) -> dict[str, Any]:
    options = {k: v for k, v in spelled(suite).items() if k not in ("tasks", "about", "suite")}
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "options": options,
        "weights": {label: o.fingerprint for label, o in opened.items()},
        "versions": {"ziggurat": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "tokenizers", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "command": shlex.join(command) if command else "",
        "tasks": {name: spelled(task) for name, task in suite.tasks.items() if not suite.only or name in suite.only},
    }
