"""The command line: light, plain about users' mistakes, and each verb calls its function with what was written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ziggurat import __version__
from ziggurat.cli import app
from ziggurat.errors import Stopped, UserError

VERBS = ("run", "prepare", "doctor", "evaluate", "interpolate", "soup", "sweep", "import", "export", "show", "list", "try")


class Exported:
    notes = ("heads left out: nsp",)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for the functions the verbs call; the list of calls."""
    seen: list[Any] = []

    def stand_in(name: str, answer: Any = None) -> Any:
        def function(*args: Any, **named: Any) -> Any:
            seen.append((name, *args, *named.values()))
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return function

    def module(name: str, **functions: Any) -> None:
        made = types.ModuleType(name)
        for key, value in functions.items():
            setattr(made, key, value)
        monkeypatch.setitem(sys.modules, name, made)

    module(
        "ziggurat.pipeline.run",
        run=lambda recipe, over: stand_in("run", {"stop": Stopped(signal.SIGTERM), "int": KeyboardInterrupt()}.get(recipe.stem))(
            recipe, over
        ),
        prepare=stand_in("prepare", UserError("no text", "check the path")),
    )
    module("ziggurat.pipeline.evaluate", evaluate=stand_in("evaluate", None))
    module(
        "ziggurat.systems.hub",
        import_folder=stand_in("import", (Path("out/step-0"), ("no tokenizer there",))),
        export_checkpoint=stand_in("export", Exported()),
    )
    module("ziggurat.pipeline.sweep", command=stand_in("sweep"))
    module("ziggurat.pipeline.tryout", try_checkpoint=stand_in("try", "Paris 0.9"))
    return seen


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


def test_help_is_quick_and_light() -> None:
    script = (
        "import sys; from ziggurat.cli import main; sys.argv = ['ziggurat', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules); print('HEAVY', heavy)"
    )
    times = []
    for _ in range(3):  # the first may have to read everything from the disk, others may share the machine
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        times.append(time.perf_counter() - began)
        if times[-1] < 1.0:
            break
    assert done.returncode == 0 and "HEAVY set()" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)
    assert min(times) < 1.0


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"ziggurat {__version__}\n")


def test_verbs(calls: list[Any]) -> None:
    assert invoke("run", "a.yaml", "seed=1", "stages.finetune.epochs=2").exit_code == 0
    assert invoke("evaluate", "runs/a", "runs/b", "glue", "seeds=1").exit_code == 0
    assert invoke("sweep", "a.yaml", "finetune", "optim.lr=1e-5,3e-5", "seed=1", "--seeds", "0,1").exit_code == 0
    assert "no tokenizer there" in invoke("import", "hf", "out").stdout
    assert "heads left out: nsp" in invoke("export", "runs/a", "hf").stdout
    assert invoke("export", "runs/a", "hf", "--architecture", "BertModel", "--task", "ner").exit_code == 0
    assert invoke("try", "runs/a", "[MASK] 好").stdout == "Paris 0.9\n"
    assert calls == [
        ("run", Path("a.yaml"), ["seed=1", "stages.finetune.epochs=2"]),
        ("evaluate", ["runs/a", "runs/b", "glue", "seeds=1"]),
        ("sweep", Path("a.yaml"), "finetune", ["optim.lr=1e-5,3e-5", "seed=1"], "0,1"),
        ("import", Path("hf"), Path("out")),
        ("export", Path("runs/a"), Path("hf"), None, None),
        ("export", Path("runs/a"), Path("hf"), "BertModel", "ner"),
        ("try", Path("runs/a"), "[MASK] 好", "", [], ""),
    ]


def test_mistakes_of_users_are_plain(calls: list[Any]) -> None:
    result = invoke("prepare", "a.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no text\n  -> check the path\n"
    assert invoke("prepare").exit_code == 2
    assert invoke("nosuchverb").exit_code == 2


def test_interrupts_are_one_line(calls: list[Any]) -> None:
    for recipe, code in {"int.yaml": 130, "stop.yaml": 143}.items():
        result = invoke("run", recipe)
        assert result.exit_code == code
        assert result.stderr.count("\n") == 1 and "continues" in result.stderr


def test_bugs_keep_their_traceback(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["ziggurat.pipeline.tryout"], "try_checkpoint", broken)
    with pytest.raises(ZeroDivisionError):
        invoke("try", "a", "b")


def test_show_and_list(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("nmae: x\n", "utf-8")
    result = invoke("show", str(bad))
    assert result.exit_code == 2 and f"{bad}:1  nmae: unknown field; did you mean 'name'?" in result.stderr
    assert "did you mean 'bert'?" in invoke("show", "berd/base").stderr
    assert "roberta/base" in invoke("list", "systems").stdout
    assert invoke("list", "sytems").exit_code == 2
