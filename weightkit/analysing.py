"""Analysing: the weights of a model by address, and what they say without running it. A part of Model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightkit.analysis.frames import Rows
from weightkit.assembly import open_registry
from weightkit.checkpoint import Checkpoint
from weightkit.errors import AddressError, WeightkitError, one_line
from weightkit.parallel import Progress
from weightkit.registry import Registry
from weightkit.running import Running
from weightkit.weight import Selection, Weight

# Rooms above are entered where they are used: opening a model should not wait for what looks into it.
if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

    from weightkit.analysis.check import Soundness
    from weightkit.analysis.circuits import Composition
    from weightkit.analysis.closely import Histogram, Norms, Outlier
    from weightkit.analysis.counts import Counts
    from weightkit.analysis.explain import Explanation
    from weightkit.analysis.finding import Finding
    from weightkit.analysis.spectrum import Spectra
    from weightkit.analysis.statistics import Statistics
    from weightkit.analysis.vocabulary import Reading
    from weightkit.dtypes import Array


@dataclass(frozen=True)
class Look:
    """One weight, or a part of it, seen closely."""

    statistics: Statistics
    histogram: Histogram
    outliers: list[Outlier]
    rows: Norms | None  # of a matrix
    columns: Norms | None


class Analysing(Running):
    """The part of Model that looks at its weights; by itself it is none."""

    def __getitem__(self, address: str) -> Weight | Selection:
        """The one weight, or part of a weight, that an address names.

        Raises AddressError where it names nothing, or several (`select` gives those).
        """
        found = self.select(address)
        if len(found) > 1:
            names = one_line((s.address for s in found), most=3)
            raise AddressError(f"{address}: names {len(found):,} weights ({names}); name one of them")
        return found[0] if found[0].index else found[0].weight

    def select(self, address: str | None = None) -> list[Selection]:
        """Everything that an address names, in forward order; without one, every tensor of the files."""
        if address is None:
            return [Selection.of(weight) for weight in self.registry.unique()]
        return self.registry.select(address, self.token_id)

    def token_id(self, text: str) -> int:
        """The id of the token that reads `text`. Raises EngineError where it is not one token."""
        return self.tokenizer.id_of(text)

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
    ) -> Rows[Statistics]:
        """One row of statistics per weight that the address names, or `by` what it says.

        `by` is "role", "layer", "head" or "expert"; or "row" or "column", of matrices in [out, in] orientation.
        With `cache` what was counted before is remembered in the user's cache folder. `progress` is told bytes.
        Raises AddressError where nothing has a head or an expert.
        """
        from weightkit.analysis.groups import grouped
        from weightkit.analysis.statistics import Group, Statistics, table

        found = self.select(address)
        groups = grouped(found, by) if by else [Group.of(selection) for selection in found]
        return Rows(Statistics, table(groups, executor=executor, progress=progress, cache=cache))

    def stats(
        self, address: str | None = None, *, by: str | None = None, executor: Executor | None = None
    ) -> pd.DataFrame:
        """`statistics` as a DataFrame."""
        return self.statistics(address, by=by, executor=executor).frame()

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
        self,
        address: str | None = None,
        *,
        cache: bool = False,
        executor: Executor | None = None,
        progress: Progress | None = None,
    ) -> Rows[Finding]:
        """What is strange in the weights that the address names, the strangest first.

        With `cache` what was read before is remembered in the user's cache folder. `progress` is told bytes.
        Raises AddressError where it names parts of weights.
        """
        from weightkit.analysis.finding import Finding
        from weightkit.analysis.outliers import find_outliers

        found = find_outliers(
            self.registry,
            self.select(address),
            initial_std=self._initial_std(),
            unused=self._unused_ids(),
            cache=cache,
            executor=executor,
            progress=progress,
        )
        return Rows(Finding, found)

    def _initial_std(self) -> float | None:
        """The standard deviation that training began with, where the config has a usable one."""
        std = (self.checkpoint.config or {}).get("initializer_range")
        return float(std) if isinstance(std, int | float) and 0 < std < math.inf else None

    def _unused_ids(self) -> list[int]:
        """The ids of rows that no text leads to: beyond the tokenizer, or of tokens that are called unused."""
        from weightkit.analysis.untrained import UNUSED

        if self.registry.config is None or self.checkpoint.tokenizer() is None:
            return []
        tokenizer = self.tokenizer
        return [*tokenizer.ids_matching(UNUSED), *range(tokenizer.last_id + 1, self.registry.config.vocab)]

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
    ) -> Rows[Composition]:
        """How much of what each attention head writes each later one reads, largest first; without running it.

        With an address, only of the heads it names. Raises AddressError where there are none.
        """
        from weightkit.analysis.circuits import Composition, circuits

        chosen = None if address is None else self.select(address)
        return Rows(Composition, circuits(self.registry, chosen, most, executor=executor, progress=progress))

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
            if self.registry.config and last >= self.registry.config.vocab:
                message = f"has ids up to {last}, the embedding has {self.registry.config.vocab} rows"
                result.faults.append(Fault("tokenizer", where, message))
        return result
