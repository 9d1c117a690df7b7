"""Model: registry, config and tokenizer in one; the object that people hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weightkit.analysing import Analysing
from weightkit.assembly import open_registry
from weightkit.checkpoint import Checkpoint, open_checkpoint
from weightkit.config import Config
from weightkit.errors import EngineError
from weightkit.parallel import Progress
from weightkit.registry import Registry
from weightkit.tracing import Tracing

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from concurrent.futures import Executor

    from weightkit.analysis.compare import Diff
    from weightkit.analysis.parts import Part
    from weightkit.analysis.trajectory import Trajectory
    from weightkit.effect.measure import Effect, Ids
    from weightkit.effect.side_by_side import Continuations
    from weightkit.effect.windows import Masks
    from weightkit.patch import Patch
    from weightkit.surgery.edits import Edit
    from weightkit.surgery.save import Plan

DEMO = "demo"
DEMO_FOLDERS = {"demo": "final", "demo:early": "early", "demo:step0": "step0"}


class Model(Analysing, Tracing):
    """A model: its named weights, its config, its tokenizer, and what can be asked of them.

    It never changes. `apply` gives a new Model that shares every byte that is not edited.
    """

    def __init__(self, checkpoint: Checkpoint, registry: Registry, edits: tuple[Edit | Patch, ...] = ()) -> None:
        self.checkpoint = checkpoint
        self.registry = registry
        self.edits = edits
        if not checkpoint.names and checkpoint.tokenizer_path is not None:
            _ = self.tokenizer  # without weights it is half of what there is: broken is not a detail

    def __repr__(self) -> str:
        kind = self.registry.model_type or "unknown architecture"
        edits = f", {len(self.edits)} edits" if self.edits else ""
        return f"<Model {str(self.checkpoint.path)!r}: {kind}, {len(self.registry):,} weights{edits}>"

    @property
    def config(self) -> Config | None:
        """What the model computes with its weights; None where its family is not known."""
        return self.registry.config

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not available for this model, and why, in plain words."""
        return self.registry.notes

    # ── weights ────────────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

    def __len__(self) -> int:
        return len(self.registry)

    def __contains__(self, address: object) -> bool:
        return address in self.registry

    def apply(self, *edits: Edit | Patch) -> Model:
        """A new model with the edits and patches made, in order. This one is not touched.

        Raises AddressError where an edit selects nothing, EditError where it cannot be made, PatchError where a
        patch was made for another model; all of the model is read to see that it was not.
        """
        from weightkit.patch.container import Patch
        from weightkit.surgery import overlay

        model = self
        for edit in edits:
            if isinstance(edit, Patch):
                model = model._patched(edit)
            else:
                changed = overlay.apply(model.registry, [edit], model.token_id)
                model = Model(model.checkpoint, changed, (*model.edits, edit))
        return model

    def _patched(self, patch: Patch) -> Model:
        from weightkit.patch.apply import apply

        checkpoint = apply(patch, self)
        return Model(checkpoint, open_registry(checkpoint), (*self.edits, patch))

    def plan(self) -> Plan:
        """What saving this edited model would touch."""
        from weightkit.surgery.save import plan

        return plan(self.checkpoint, self.registry)

    def convert(
        self,
        out: str | Path,
        *,
        dtype: str | None = None,
        shard_bytes: int = 5_000_000_000,
        force: bool = False,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the model in another format, type or number of shards; the name of `out` says which format.

        Raises SaveError where it cannot be written, EditError where a number does not fit the type.
        """
        from weightkit.surgery.convert import convert

        return convert(
            self.checkpoint,
            self.registry,
            out,
            dtype=dtype,
            shard_bytes=shard_bytes,
            force=force,
            executor=executor,
            progress=progress,
        )

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write the model; only shards with an edit are rewritten. Raises SaveError, nothing lost."""
        from weightkit.surgery.save import save

        return save(self.checkpoint, self.registry, out, force=force)


def open_model(path: str | Path) -> Model:
    """Open a model: a file, a folder, an index, a config.json, or `demo`. Only headers are read.

    Raises FormatError or ConfigError, one clear line, where it cannot be opened.
    """
    folder = DEMO_FOLDERS.get(str(path))
    if folder is not None:
        path = Path(__file__).parent / DEMO / folder
    checkpoint = open_checkpoint(path)
    return Model(checkpoint, open_registry(checkpoint))


def diff(
    a: Model,
    b: Model,
    *,
    texts: Sequence[str | Path] = (),
    ids: Sequence[Ids] = (),
    by: str = "role",
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Diff:
    """What differs between two models, weight by weight: by address where both have roles, else by name.

    With `texts` or `ids`, as in `measure`, its `parts` say what the differences do: `by` "role", "layer" or
    "weight", as `attribute` finds it. Raises EngineError where that cannot be.
    """
    from weightkit.analysis.compare import diff
    from weightkit.analysis.structure import metadata, tokens

    run = bool(texts or ids)
    if run:
        require_attributable(a, b, text=bool(texts))
    found = diff(a.registry, b.registry, executor=executor, progress=progress)
    one, other = a.checkpoint, b.checkpoint
    found = replace(
        found,
        tokens=tokens(one, other),
        metadata=metadata(one.metadata, other.metadata),
        make_patch=functools.partial(_make_patch, a, b),
    )
    return replace(found, parts=attribute(a, b, found, texts, ids=ids, by=by)) if run else found


def _make_patch(a: Model, b: Model) -> Patch:
    from weightkit.patch import make

    return make(a, b)


def require_attributable(a: Model, b: Model, *, text: bool = True) -> None:
    """Raise EngineError unless parts of one model can be put into the other, and both read the same of a `text`."""
    from weightkit.analysis.structure import tokens
    from weightkit.effect.measure import require_comparable
    from weightkit.effect.swapped import require_swappable

    require_comparable(a.engine, b.engine)
    if text and tokens(a.checkpoint, b.checkpoint) is not None:
        raise EngineError("the tokenizers differ, so one text is other ids to each; give token ids (--ids 1,2,3)")
    require_swappable(a.registry, b.registry)


def attribute(
    a: Model,
    b: Model,
    found: Diff,
    texts: Sequence[str | Path] = (),
    *,
    ids: Sequence[Ids] = (),
    by: str = "role",
    progress: Progress | None = None,
) -> list[Part]:
    """What each part of a diff does: the KL from A of A with that part of B, the largest change first.

    A part is what differs of a role, of a layer or in one weight; of more than 20 the smallest are one. A text is
    run twice for each. Raises EngineError where there is nothing to run, AddressError for what parts are not `by`.
    """
    from weightkit.analysis.parts import parts
    from weightkit.effect.swapped import attribute

    def kl(registry: Registry) -> float:
        return measure(a, Model(a.checkpoint, registry), texts, ids=ids).kl_mean

    settings = bool(found.config.keys() - {"tied"})
    return attribute(a.registry, b.registry, parts(found.changed, by), kl, settings=settings, progress=progress)


def trajectory(
    snapshots: Sequence[Model], *, executor: Executor | None = None, progress: Progress | None = None
) -> Trajectory:
    """How weights moved over snapshots of one training, in their order: by weight, role, layer and in all.

    Raises FormatError unless there are two or more, with the same weights of the same shapes.
    """
    from weightkit.analysis.trajectory import trajectory

    names = [str(model.checkpoint.path) for model in snapshots]
    return trajectory([model.registry for model in snapshots], names, executor=executor, progress=progress)


def measure(
    a: Model,
    b: Model,
    texts: Sequence[str | Path] = (),
    *,
    ids: Sequence[Ids] = (),
    window: int | None = None,
    overlap: int | None = None,
    progress: Progress | None = None,
) -> Effect:
    """Run two models on the same texts (or token ids) and compare what they predict.

    Texts are read with the tokenizer of `a`; a Path is a text file, some of which is read at a time. Long ones are
    cut into windows of `window` tokens (512), each of which begins with the last `overlap` tokens of the one before
    (half a window), to predict from. Raises EngineError where there is nothing to compare.
    """
    from weightkit.effect.measure import measure

    texts = [texts] if isinstance(texts, str | Path) else texts
    engines = a.engine, b.engine
    sequences = [*(a.text_file(text) if isinstance(text, Path) else a.ids(text) for text in texts), *ids]
    masks = None if a.engine.continues else _masks(a)
    return measure(*engines, sequences, window=window, overlap=overlap, masks=masks, progress=progress)


def _masks(model: Model) -> Masks | None:
    """How a masked language model is asked; None where there is no tokenizer to say it."""
    from weightkit.effect.windows import Masks

    if model.checkpoint.tokenizer() is None:
        return None
    tokenizer = model.tokenizer
    return Masks(tokenizer.id_of(tokenizer.mask), frozenset(tokenizer.encode("")))


def side_by_side(a: Model, b: Model, prompt: str | Sequence[int], max_tokens: int = 40) -> Continuations:
    """What two models make of one prompt, greedily, with the tokenizer of `a`.

    Raises EngineError for a model that does not continue texts.
    """
    from weightkit.effect.side_by_side import side_by_side

    ends = a.end_ids if isinstance(prompt, str) else ()
    return side_by_side(a.engine, b.engine, a.ids(prompt), max_tokens, ends, a.decode)
