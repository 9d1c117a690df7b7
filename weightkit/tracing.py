"""Tracing: what goes on inside while a model runs: activations, and what they say of the logits. A part of Model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightkit.dtypes import Array
from weightkit.running import Running

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from weightkit.effect.changes import Change
    from weightkit.effect.lens import Lens
    from weightkit.effect.trace import Text, Trace


class Tracing(Running):
    """A model that shows what goes on inside while it runs."""

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
