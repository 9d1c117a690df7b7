"""Model: registry, config and tokenizer in one; the object that people hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightkit.assembly import open_registry
from weightkit.checkpoint import Checkpoint, open_checkpoint
from weightkit.config import Config
from weightkit.errors import AddressError, WeightkitError, one_line
from weightkit.parallel import Progress
from weightkit.registry import Registry
from weightkit.tracing import Tracing
from weightkit.weight import Selection, Weight

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

    from weightkit.analysis.check import Soundness
    from weightkit.analysis.circuits import Composition
    from weightkit.analysis.closely import Histogram, Norms, Outlier
    from weightkit.analysis.compare import Diff
    from weightkit.analysis.counts import Counts
    from weightkit.analysis.explain import Explanation
    from weightkit.analysis.finding import Finding
    from weightkit.analysis.spectrum import Spectra
    from weightkit.analysis.statistics import Statistics
    from weightkit.analysis.vocabulary import Reading
    from weightkit.dtypes import Array
    from weightkit.effect.measure import Effect, Ids
    from weightkit.effect.side_by_side import Continuations
    from weightkit.effect.windows import Masks
    from weightkit.surgery.edits import Edit
    from weightkit.surgery.save import Plan

DEMO = "demo"
DEMO_FOLDERS = {"demo": "final", "demo:early": "early", "demo:step0": "step0"}


@dataclass(frozen=True)
class Look:
    """One weight, or a part of it, seen closely."""

    statistics: Statistics
    histogram: Histogram
    outliers: list[Outlier]
    rows: Norms | None  # of a matrix
    columns: Norms | None


class Model(Tracing):
    """A model: its named weights, its config, its tokenizer, and what can be asked of them.

    It never changes. `apply` gives a new Model that shares every byte that is not edited.
    """

    def __init__(self, checkpoint: Checkpoint, registry: Registry, edits: tuple[Edit, ...] = ()) -> None:
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

    def __getitem__(self, address: str) -> Weight | Selection:
        """The one weight, or part of a weight, that an address names.

        Raises AddressError where it names nothing, or several (`select` gives those).
        """
        found = self.select(address)
        if len(found) > 1:
            names = one_line((s.address for s in found), most=3)
            raise AddressError(f"{address}: names {len(found):,} weights ({names}); name one of them")
        return found[0] if found[0].index else found[0].weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

    def __len__(self) -> int:
        return len(self.registry)

    def __contains__(self, address: object) -> bool:
        return address in self.registry

    def select(self, address: str | None = None) -> list[Selection]:
        """Everything that an address names, in forward order; without one, every tensor of the files."""
        if address is None:
            return [Selection.of(weight) for weight in self.registry.unique()]
        return self.registry.select(address, self.token_id)

    def token_id(self, text: str) -> int:
        """The id of the token that reads `text`. Raises EngineError where it is not one token."""
        return self.tokenizer.id_of(text)

    def apply(self, *edits: Edit) -> Model:
        """A new model with the edits made, in order. This one is not touched.

        Raises AddressError where an edit selects nothing, EditError where it cannot be made.
        """
        from weightkit.surgery import overlay

        changed = overlay.apply(self.registry, edits, self.token_id)
        return Model(self.checkpoint, changed, (*self.edits, *edits))

    def plan(self) -> Plan:
        """What saving this edited model would touch."""
        from weightkit.surgery.save import plan

        return plan(self.checkpoint, self.registry)

    def convert(
        self, out: str | Path, *, dtype: str | None = None, shard_bytes: int = 5_000_000_000, force: bool = False
    ) -> Path:
        """Write the model in another format, type or number of shards; the name of `out` says which format.

        Raises SaveError where it cannot be written, EditError where a number does not fit the type.
        """
        from weightkit.surgery.convert import convert

        return convert(self.checkpoint, self.registry, out, dtype=dtype, shard_bytes=shard_bytes, force=force)

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write the model; only shards with an edit are rewritten. Raises SaveError, nothing lost."""
        from weightkit.surgery.save import save

        return save(self.checkpoint, self.registry, out, force=force)

    # ── analysis ───────────────────────────────────────────────────────────────────────────────────

    def counts(self) -> Counts:
        """How many parameters there are, of what kind, and what they cost. Reads no weights."""
        from weightkit.analysis.counts import count

        return count(self.registry)

    def explain(self) -> Explanation:
        """Every count taken apart into matrices and their sizes, and held against the config. Reads no weights."""
        from weightkit.analysis.explain import explain

        return explain(self.registry, self.described() if self.registry.config is not None else None)

    def described(self) -> Registry | None:
        """The registry that the config alone describes, without weights; None where there is no config."""
        if self.checkpoint.config is None:
            return None
        return open_registry(Checkpoint(self.checkpoint.path, self.checkpoint.folder, config=self.checkpoint.config))

    def statistics(
        self,
        address: str | None = None,
        *,
        by: str | None = None,
        cache: bool = False,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> list[Statistics]:
        """One row of statistics per weight that the address names, or `by` "role", "layer", "head" or "expert".

        With `cache` what was counted before is remembered in the user's cache folder. `progress` is told bytes.
        Raises AddressError where nothing has a head or an expert.
        """
        from weightkit.analysis.groups import grouped
        from weightkit.analysis.statistics import Group, table

        found = self.select(address)
        groups = grouped(found, by) if by else [Group.of(selection) for selection in found]
        return table(groups, executor=executor, progress=progress, cache=cache)

    def stats(
        self, address: str | None = None, *, by: str | None = None, executor: Executor | None = None
    ) -> pd.DataFrame:
        """`statistics` as a DataFrame."""
        import pandas as pd

        from weightkit.analysis.statistics import Statistics

        rows = self.statistics(address, by=by, executor=executor)
        return pd.DataFrame(rows, columns=list(Statistics.__dataclass_fields__))

    def spectrum(
        self,
        address: str | None = None,
        *,
        by_head: bool = False,
        shuffle: int | None = None,
        full: bool = False,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> Spectra:
        """Singular values in numbers, one row per matrix that the address names, and why others have none.

        `by_head` takes the heads of attention matrices one by one; `shuffle` is a seed, to compare each with
        the same numbers in another order; `full` computes all singular values of the largest matrices too.
        """
        from weightkit.analysis.spectrum import Wanted, spectra

        selections = self.select(address)
        if by_head:
            selections = [part for selection in selections for part in selection.heads()]
        wanted = [Wanted(selection, shuffle, full) for selection in selections]
        return spectra(wanted, executor=executor, progress=progress)

    def singular_values(self, address: str) -> Array:
        """All singular values of one matrix, largest first, float64 [smaller side].

        Raises AddressError where the address names several weights, or what is no matrix of finite numbers.
        """
        from weightkit.analysis.spectrum import singular_values

        found = self[address]
        return singular_values(found if isinstance(found, Selection) else Selection.of(found))

    def look(self, address: str, bins: int = 32) -> Look:
        """One weight closely: statistics, histogram, the numbers farthest from the mean, rows and columns by norm."""
        from weightkit.analysis.closely import histogram, norms, outliers
        from weightkit.analysis.statistics import statistics

        found = self[address]
        selection = found if isinstance(found, Selection) else Selection.of(found)
        row = statistics(selection)
        return Look(row, histogram(selection, row, bins), outliers(selection, row), *norms(selection, row))

    def outliers(
        self, address: str | None = None, *, executor: Executor | None = None, progress: Progress | None = None
    ) -> list[Finding]:
        """What is strange in the weights that the address names, the strangest first.

        Raises AddressError where it names parts of weights.
        """
        from weightkit.analysis.outliers import find_outliers

        return find_outliers(
            self.registry,
            self.select(address),
            initial_std=self._initial_std(),
            unused=self._unused_ids(),
            executor=executor,
            progress=progress,
        )

    def _initial_std(self) -> float | None:
        """The standard deviation that training began with, where the config has a usable one."""
        std = (self.checkpoint.config or {}).get("initializer_range")
        return float(std) if isinstance(std, int | float) and 0 < std < math.inf else None

    def _unused_ids(self) -> list[int]:
        """The ids of rows that no text leads to: beyond the tokenizer, or of tokens that are called unused."""
        from weightkit.analysis.untrained import UNUSED

        if self.config is None or self.checkpoint.tokenizer() is None:
            return []
        tokenizer = self.tokenizer
        return [*tokenizer.ids_matching(UNUSED), *range(tokenizer.last_id + 1, self.config.vocab)]

    def vocabulary(
        self,
        address: str,
        most: int = 10,
        *,
        token: str | int | None = None,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> Reading:
        """What a token, a neuron or a head means in tokens, by its weights alone.

        The neighbours of `embed[token=42]`; what `layers.0.ffn[neuron=17]` writes; what `layers.0.attn[head=3]` copies
        or, with a `token`, writes where it attends to that one. Raises AddressError for anything else.
        """
        from weightkit.analysis.vocabulary import read

        chosen = self.select(address)
        attended = self.token_id(token) if isinstance(token, str) else token
        text = self.token_text
        return read(self.registry, address, chosen, text, most, token=attended, executor=executor, progress=progress)

    def circuits(
        self,
        address: str | None = None,
        most: int | None = None,
        *,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> list[Composition]:
        """How much of what each attention head writes each later one reads, largest first; without running it.

        With an address, only of the heads it names. Raises AddressError where there are none.
        """
        from weightkit.analysis.circuits import circuits

        chosen = None if address is None else self.select(address)
        return circuits(self.registry, chosen, most, executor=executor, progress=progress)

    def check(self, *, executor: Executor | None = None, progress: Progress | None = None) -> Soundness:
        """Whether the checkpoint is sound; reads all of it."""
        from weightkit.analysis.check import Fault, check

        result = check(self.checkpoint, self.registry, executor=executor, progress=progress)
        where = "tokenizer.json" if self.checkpoint.tokenizer_path else self.checkpoint.path.name
        try:
            if self.checkpoint.tokenizer() is None:
                result.not_checked.append("tokenizer: there is none")
                return result
            last = self.tokenizer.last_id
        except WeightkitError as error:
            result.faults.append(Fault("tokenizer", where, str(error)))
        else:
            if self.config and last >= self.config.vocab:
                message = f"has ids up to {last}, the embedding has {self.config.vocab} rows"
                result.faults.append(Fault("tokenizer", where, message))
        return result


def open_model(path: str | Path) -> Model:
    """Open a model: a file, a folder, an index, a config.json, or `demo`. Only headers are read.

    Raises FormatError or ConfigError, one clear line, where it cannot be opened.
    """
    folder = DEMO_FOLDERS.get(str(path))
    if folder is not None:
        path = Path(__file__).parent / DEMO / folder
    checkpoint = open_checkpoint(path)
    return Model(checkpoint, open_registry(checkpoint))


def diff(a: Model, b: Model, *, executor: Executor | None = None, progress: Progress | None = None) -> Diff:
    """What differs between two models, weight by weight: by address where both have roles, else by name."""
    from weightkit.analysis.compare import diff

    return diff(a.registry, b.registry, executor=executor, progress=progress)


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
