"""Tracing: what goes on inside while a model runs: activations, and what they say of the logits. A part of Model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightkit.dtypes import Array
from weightkit.parallel import Progress
from weightkit.running import Prompt, Running

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from weightkit.effect.changes import Change
    from weightkit.effect.glance import Activation
    from weightkit.effect.lens import Lens
    from weightkit.effect.trace import Text, Trace
    from weightkit.patch import Patch
    from weightkit.surgery.edits import Edit


class Tracing(Running):
    """The part of Model that shows what goes on inside while it runs; by itself it is none."""

    edits: tuple[Edit | Patch, ...]

    def trace(
        self,
        prompt: Prompt,
        capture: str | Sequence[str] = (),
        changes: Change | Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
    ) -> Trace:
        """Run one text and keep the activations that patterns such as `layers.*.attn.pattern` name, and the logits.

        `changes` are made to activations while it runs: `wk.zero("layers.3.attn.heads[head=2]")`, `wk.scale`,
        `wk.set`, `wk.replace`. What is captured and changed is given as a list, or as one.

        Raises AddressError for what names nothing, EditError for a change that cannot be made, and EngineError for a
        prompt that is not one text of this model. Nothing is raised for NaN: seeing it is what a trace is for.
        """
        from weightkit.effect.trace import trace

        return trace(self.engine, self._text(prompt, decoder_ids), _several(capture), _several(changes))

    def activations(
        self,
        prompt: Prompt,
        capture: str | Sequence[str] = ("*",),
        changes: Change | Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Activation]:
        """The activations of one text in a few numbers each: axes, shape, how large. The arrays are not kept.

        They are all that there are, where nothing is said. Raises what `trace` does.
        """
        from weightkit.effect.glance import Glance
        from weightkit.effect.trace import record

        glance = Glance()
        text, changes = self._text(prompt, decoder_ids), _several(changes)
        record(self.engine, text, _several(capture), glance, changes=changes, progress=progress)
        return glance.rows()

    def save_trace(
        self,
        out: str | Path,
        prompt: Prompt,
        capture: str | Sequence[str],
        changes: Change | Sequence[Change] = (),
        *,
        decoder_ids: Sequence[int] | None = None,
        append: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> list[Activation]:
        """`activations`, whose arrays are written to an HDF5 file a few tokens at a time, so that memory stays small.

        With `append` the text is written behind those that the file holds. Raises what `trace` does, and SaveError
        where it cannot be written; the destination is as it was.
        """
        from weightkit.effect.glance import Glance
        from weightkit.effect.trace_file import save

        glance, changes = Glance(), _several(changes)
        about = {
            "model": str(self.checkpoint.path),
            "edits": "; ".join(map(str, self.edits)),
            "changes": "; ".join(map(str, changes)),
        }
        save(
            self.engine,
            self._text(prompt, decoder_ids),
            Path(out),
            _several(capture),
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
        self, prompt: Prompt, changes: Change | Sequence[Change] = (), *, decoder_ids: Sequence[int] | None = None
    ) -> Lens:
        """The logits, [tokens, vocab], that the model would end with after each layer, by address.

        Raises what `trace` does.
        """
        from weightkit.effect.lens import lens

        return lens(self.engine, self._text(prompt, decoder_ids), _several(changes))

    def contributions(
        self,
        prompt: Prompt,
        tokens: str | int | Sequence[str | int] | None = None,
        *,
        decoder_ids: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """What each half of each block adds to the logits of some tokens, [positions, tokens], by address.

        `tokens` are ids, or texts that are one token each; all there are without them. Raises EngineError for a text
        that is several tokens, and for models whose residual stream is normed after every sum.
        """
        from weightkit.effect.lens import contributions

        text = self._text(prompt, decoder_ids)
        if tokens is None:
            return contributions(self.engine, text)
        ids = [self.tokenizer.id_of(token) if isinstance(token, str) else token for token in _several(tokens)]
        return contributions(self.engine, text, ids)

    def _text(self, prompt: Prompt, decoder_ids: Sequence[int] | None = None) -> Text:
        from weightkit.effect.trace import text_of

        return text_of(self.engine, self._prompt_ids(prompt), decoder_ids)


def _several(one_or_several: Any) -> list[Any]:
    """A list of what may have been given as one."""
    one = isinstance(one_or_several, str) or not isinstance(one_or_several, Iterable)
    return [one_or_several] if one else list(one_or_several)
