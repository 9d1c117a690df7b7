"""Tracing: what goes on inside while a model runs: activations, and what they say of the logits. A part of Model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightkit.dtypes import Array
from weightkit.parallel import Progress
from weightkit.running import Running

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from weightkit.effect.changes import Change
    from weightkit.effect.glance import Activation
    from weightkit.effect.lens import Lens
    from weightkit.effect.trace import Text, Trace
    from weightkit.surgery.edits import Edit


class Tracing(Running):
    """A model that shows what goes on inside while it runs."""

    edits: tuple[Edit, ...]

    def trace(
        self,
        prompt: str | Sequence[int],
        capture: Sequence[str] = (),
        changes: Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
    ) -> Trace:
        """Run one text and keep the activations that patterns such as `layers.*.attn.pattern` name, and the logits.

        `changes` are made to activations while it runs: `wk.zero("layers.3.attn.heads[head=2]")`, `wk.scale`,
        `wk.set`, `wk.replace`. Raises AddressError for what names nothing.
        """
        from weightkit.effect.trace import trace

        return trace(self.engine, self._text(prompt, decoder_ids), capture, changes)

    def activations(
        self,
        prompt: str | Sequence[int],
        capture: Sequence[str] = ("*",),
        changes: Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Activation]:
        """The activations of one text in a few numbers each: axes, shape, how large. The arrays are not kept."""
        from weightkit.effect.glance import Glance
        from weightkit.effect.trace import record

        glance = Glance()
        record(self.engine, self._text(prompt, decoder_ids), capture, glance, changes=changes, progress=progress)
        return glance.rows()

    def save_trace(
        self,
        out: str | Path,
        prompt: str | Sequence[int],
        capture: Sequence[str],
        changes: Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
        append: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> list[Activation]:
        """`activations`, whose arrays are written to an HDF5 file a few tokens at a time, so that memory stays small.

        With `append` the text is written behind those that the file holds. Raises SaveError where it cannot be
        written; the destination is as it was.
        """
        from weightkit.effect.glance import Glance
        from weightkit.effect.trace_file import save

        glance = Glance()
        about = {
            "model": str(self.checkpoint.path),
            "edits": "; ".join(map(str, self.edits)),
            "changes": "; ".join(map(str, changes)),
        }
        save(
            self.engine,
            self._text(prompt, decoder_ids),
            Path(out),
            capture,
            about=about,
            token_text=self.token_text,
            changes=changes,
            append=append,
            force=force,
            also=glance,
            progress=progress,
        )
        return glance.rows()

    def lens(
        self, prompt: str | Sequence[int], changes: Sequence[Change] = (), *, decoder_ids: Sequence[int] | None = None
    ) -> Lens:
        """The logits, [tokens, vocab], that the model would end with after each layer, by address."""
        from weightkit.effect.lens import lens

        return lens(self.engine, self._text(prompt, decoder_ids), changes)

    def contributions(
        self,
        prompt: str | Sequence[int],
        tokens: Sequence[str | int] | None = None,
        *,
        decoder_ids: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """What each half of each block adds to the logits of some tokens, [positions, tokens], by address.

        Raises EngineError for models whose residual stream is normed after every sum.
        """
        from weightkit.effect.lens import contributions

        text = self._text(prompt, decoder_ids)
        wanted = None if tokens is None else [self.tokenizer.id_of(t) if isinstance(t, str) else t for t in tokens]
        return contributions(self.engine, text, wanted)

    def _text(self, prompt: str | Sequence[int], decoder_ids: Sequence[int] | None = None) -> Text:
        from weightkit.effect.trace import text_of

        return text_of(self.engine, self._prompt_ids(prompt), decoder_ids)
