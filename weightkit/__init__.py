"""weightkit: see, count, compare, edit and test the weights of any LLM checkpoint, without PyTorch.

import weightkit as wk

model = wk.open("path/to/model")
model.counts().total
model["layers.0.attn.q"].array()
edited = model.apply(wk.zero("layers.0.attn[head=3]"))
wk.diff(model, edited)
wk.measure(model, edited, texts=["The capital of France is Paris."])
edited.save("out/")
wk.patch.make(model, edited).save("edit.wkpatch")
model.trace("The capital of France is", capture=["layers.*.attn.pattern"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightkit import patch as patch
    from weightkit.analysis.compare import Diff as Diff
    from weightkit.analysis.counts import Counts as Counts
    from weightkit.effect.changes import replace as replace
    from weightkit.effect.measure import Effect as Effect
    from weightkit.effect.trace import Trace as Trace
    from weightkit.errors import WeightkitError as WeightkitError
    from weightkit.model import Model as Model
    from weightkit.model import diff as diff
    from weightkit.model import measure as measure
    from weightkit.model import open_model as open
    from weightkit.model import side_by_side as side_by_side
    from weightkit.model import trajectory as trajectory
    from weightkit.surgery.edits import Edit as Edit
    from weightkit.surgery.edits import noise as noise
    from weightkit.surgery.edits import scale as scale
    from weightkit.surgery.edits import set_to as set
    from weightkit.surgery.edits import zero as zero
    from weightkit.threads import set_threads as set_threads

__version__ = "0.1.0"

# Where each public name lives. Rooms are entered when a name is first used, so importing costs nothing.
_HOMES = {
    "Counts": ("analysis.counts", "Counts"),
    "Diff": ("analysis.compare", "Diff"),
    "Edit": ("surgery.edits", "Edit"),
    "Effect": ("effect.measure", "Effect"),
    "Model": ("model", "Model"),
    "Trace": ("effect.trace", "Trace"),
    "WeightkitError": ("errors", "WeightkitError"),
    "diff": ("model", "diff"),
    "measure": ("model", "measure"),
    "noise": ("surgery.edits", "noise"),
    "open": ("model", "open_model"),
    "patch": ("patch", ""),
    "replace": ("effect.changes", "replace"),
    "scale": ("surgery.edits", "scale"),
    "set": ("surgery.edits", "set_to"),
    "set_threads": ("threads", "set_threads"),
    "side_by_side": ("model", "side_by_side"),
    "trajectory": ("model", "trajectory"),
    "zero": ("surgery.edits", "zero"),
}
__all__ = [
    "Counts",
    "Diff",
    "Edit",
    "Effect",
    "Model",
    "Trace",
    "WeightkitError",
    "diff",
    "measure",
    "noise",
    "open",
    "patch",
    "replace",
    "scale",
    "set",
    "set_threads",
    "side_by_side",
    "trajectory",
    "zero",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weightkit' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    home = importlib.import_module(f"weightkit.{module}")
    value = getattr(home, attribute) if attribute else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
