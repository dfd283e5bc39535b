"""Ziggurat: the survey recipe for pre-trained language models, as software.

    import ziggurat as zg

    folder = zg.run("recipes/quickstart.yaml")                 # what `ziggurat run` does; returns the run folder
    zg.load(folder / "tapt").fill("The [MASK] of the matrix")  # the most probable tokens for each mask
    zg.load(folder / "finetune").predict(["a text"])           # labels
    zg.export(folder / "finetune", "out")                      # a folder for AutoModel.from_pretrained

Nothing heavy is imported before one of these is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ziggurat.errors import UserError
    from ziggurat.pipeline.evaluate import evaluate_checkpoint as score
    from ziggurat.pipeline.model import load
    from ziggurat.pipeline.run import prepare, run
    from ziggurat.pipeline.show import show
    from ziggurat.pipeline.soup import soup
    from ziggurat.pipeline.suites import evaluate_suite
    from ziggurat.pipeline.sweep import sweep
    from ziggurat.systems.hub import export_checkpoint as export
    from ziggurat.systems.hub import from_hub
    from ziggurat.systems.hub import import_folder as import_

__all__ = [
    "UserError",
    "evaluate_suite",
    "export",
    "from_hub",
    "import_",
    "load",
    "prepare",
    "run",
    "score",
    "show",
    "soup",
    "sweep",
]
__version__ = "0.1.0"

PLACES = {
    "run": "pipeline.run:run",
    "prepare": "pipeline.run:prepare",
    "load": "pipeline.model:load",
    "score": "pipeline.evaluate:evaluate_checkpoint",
    "evaluate_suite": "pipeline.suites:evaluate_suite",
    "import_": "systems.hub:import_folder",
    "from_hub": "systems.hub:from_hub",
    "export": "systems.hub:export_checkpoint",
    "show": "pipeline.show:show",
    "soup": "pipeline.soup:soup",
    "sweep": "pipeline.sweep:sweep",
    "UserError": "errors:UserError",
}
"""Where each name of the API lives."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'ziggurat' has no attribute '{name}'")
    module, _, attribute = PLACES[name].partition(":")
    return getattr(import_module(f"ziggurat.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
