"""Running: what a model says: logits, tables of tokens, texts. It is the part of Model that needs the engine."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from weightkit.checkpoint import GENERATION, Checkpoint
from weightkit.dtypes import Array
from weightkit.errors import ConfigError, EngineError, whole_number
from weightkit.registry import Registry

# Rooms above are entered where they are used: counting should not wait for the engine to load.
if TYPE_CHECKING:
    from weightkit.engine.chat import Messages
    from weightkit.engine.forward import Engine
    from weightkit.engine.generate import Choice, Steps
    from weightkit.engine.text_file import TextFile
    from weightkit.engine.tokenizer import Tokenizer
    from weightkit.engine.writing import Writing

Ids = Sequence[int] | Sequence[Sequence[int]] | Array
Prompt = str | Sequence[int] | Array  # a text, or its token ids


@dataclass(frozen=True)
class Token:
    """One candidate for the next token."""

    token: str
    id: int
    logit: float
    probability: float


class Running:
    """The part of Model that runs it; by itself it is none."""

    checkpoint: Checkpoint
    registry: Registry

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the engine and the tokenizer, which are made again when they are needed."""
        return {name: value for name, value in self.__dict__.items() if name not in ("engine", "tokenizer")}

    @functools.cached_property
    def engine(self) -> Engine:
        """The forward engine. Raises EngineError where the model cannot be run."""
        from weightkit.engine.forward import Engine

        for weight in self.registry.values():
            _ = weight.stored  # raises where there is only a config.json
        try:
            return Engine(self.registry)
        except EngineError as error:
            raise EngineError(f"{self.checkpoint.path}: {error}") from None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises EngineError where there is none, FormatError where it is broken."""
        from weightkit.engine.tokenizer import Tokenizer

        raw = self.checkpoint.tokenizer()
        if raw is None:
            raise EngineError(
                f"{self.checkpoint.folder}: no tokenizer.json, so text cannot be read; "
                "give token ids instead (--ids 1,2,3)"
            )
        path = self.checkpoint.tokenizer_path or self.checkpoint.path
        return Tokenizer(raw, path, self.checkpoint.tokenizer_settings())

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a text; ids are given back as they are. Raises EngineError for what is neither."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            one: Any = prompt[0] if _is_batch(prompt) and len(prompt) == 1 else prompt
            return [operator.index(token_id) for token_id in one]
        except TypeError:
            raise EngineError("a prompt is one text, or its token ids: whole numbers, as in [1, 403, 407]") from None

    def text_file(self, path: str | Path) -> TextFile:
        """The token ids of a text file of any size, to iterate over: some of it is read at a time."""
        from weightkit.engine.text_file import TextFile

        return TextFile(Path(path), self.tokenizer)

    @overload
    def logits(self, ids: str | Sequence[int] | Array, *, decoder_ids: Ids | None = None) -> Array: ...

    @overload
    def logits(self, ids: Ids, *, decoder_ids: Ids | None = None) -> Any: ...

    def logits(self, ids: str | Ids, *, decoder_ids: Ids | None = None) -> Any:
        """Logits of the next token at every position: [tokens, vocab], or [batch, tokens, vocab].

        `ids` are token ids, or a text, or a batch: several sequences of ids; where their lengths differ, the logits
        are a list of [tokens, vocab]. Those of a masked language model say which token is at each position. A model
        with an encoder reads `ids` with it, and the logits are those after each of `decoder_ids`; without them,
        after the token that its decoder begins with.

        Raises EngineError for a model that cannot be run, for ids outside its vocabulary and for more of them than
        it has positions. Of weights that are NaN the logits are NaN, which all that chooses tokens refuses.
        """
        if _is_ragged(ids) or _is_ragged(decoder_ids):
            answers: Any = itertools.repeat(None, len(ids)) if decoder_ids is None else decoder_ids
            return [self.logits(row, decoder_ids=answer) for row, answer in zip(ids, answers, strict=True)]
        ids = self.ids(ids) if isinstance(ids, str) else ids
        logits = self._logits(ids, decoder_ids)
        return logits if _is_batch(ids) else logits[0]

    def _logits(self, ids: Ids, decoder_ids: Ids | None, *, last: bool = False) -> Array:  # -> [b, t, vocab]
        engine = self.engine
        array = engine.ids(ids)
        if not engine.has_encoder:
            return engine.logits(array, last=last)
        start = np.full((len(array), 1), engine.config.decoder_start)
        answer = start if decoder_ids is None else engine.ids(decoder_ids)
        return engine.logits(answer, source=engine.encode(array), last=last)

    def next_tokens(self, prompt: Prompt, most: int = 10, *, decoder_ids: Sequence[int] | None = None) -> list[Token]:
        """The likeliest next tokens after a prompt, likeliest first; `decoder_ids` as in `logits`.

        Raises EngineError as `logits` does, for logits that are not finite, and for a masked language model: that
        can `fill`.
        """
        most = whole_number(most, "most", least=1)
        ids = self._prompt_ids(prompt)
        self.engine.require_continues()
        return self._table(self._finite_logits(ids, decoder_ids, last=True)[-1], most)

    def fill(self, prompt: Prompt, most: int = 10) -> list[list[Token]]:
        """What a masked language model puts in the place of each mask of a text, likeliest first.

        Raises EngineError where the text has no mask, or the model is none of these, and as `next_tokens` does.
        """
        most = whole_number(most, "most", least=1)
        ids = self._prompt_ids(prompt)
        if self.engine.continues:
            raise EngineError("this model continues a text and fills no masks in it")
        if self.checkpoint.tokenizer() is None:
            raise EngineError(
                "this model says what masked tokens are; which is its mask only a tokenizer.json could say"
            )
        mask = self.tokenizer.mask
        masks = [place for place, token_id in enumerate(ids) if token_id == self.tokenizer.id_of(mask)]
        if not masks:
            raise EngineError(f"this model says what masked tokens are: put {mask} where one is asked for")
        logits = self._finite_logits(ids)
        return [self._table(logits[place], most) for place in masks]

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int = 40,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **choice: Unpack[Choice],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[int] | Array,
        max_tokens: int = 40,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **choice: Unpack[Choice],
    ) -> list[int]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        max_tokens: int = 40,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **choice: Unpack[Choice],
    ) -> Any: ...

    def generate(
        self,
        prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
        max_tokens: int = 40,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **choice: Unpack[Choice],
    ) -> Any:
        """Continue a prompt: text for a text, ids for ids, the prompt included. It goes and ends as `write` does.

        What a model with an encoder answers is given alone. Several prompts, of any lengths, go on together, which
        takes less time than one by one; the list has for each what it alone would have, draws included.
        """
        from weightkit.engine.generate import Steps

        several = _is_several(prompt)
        prompts: list[Any] = list(prompt) if several else [prompt]
        made = [self._prompt_ids(p) for p in prompts]
        steps = Steps(self.engine)
        writings = [
            self._writing(
                ids,
                max_tokens,
                choice,
                self._ends(p, ignore_eos),
                context=() if self.engine.has_encoder else ids,
                stop=stop,
                steps=steps,
                has_text=bool(stop) or isinstance(p, str),
            )
            for p, ids in zip(prompts, made, strict=True)
        ]
        for _ in itertools.zip_longest(*(writing.steps() for writing in writings)):  # a token of each in turn
            pass
        found = [
            writing.whole() if isinstance(p, str) else [*writing.context, *writing.ids]
            for p, writing in zip(prompts, writings, strict=True)
        ]
        return found if several else found[0]

    def write(
        self,
        prompt: Prompt,
        max_tokens: int = 40,
        *,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **choice: Unpack[Choice],
    ) -> Writing:
        """What follows a prompt, to iterate over in parts of text as they are written.

        Tokens are the likeliest ones or, with a `temperature` above 0, drawn by their probabilities: of the `top_k`
        likeliest, and of the fewest likeliest that have the probability `top_p` together; another `seed` draws
        others. A text ends before a string of `stop`, at the model's end of text unless `ignore_eos`, after
        `max_tokens`, and where a model with learned positions has no more of them. Ids go on after the end of text:
        who gives ids means ids.

        Raises EngineError for what is asked wrongly, and while it is written where logits are not finite.
        """
        ids = self._prompt_ids(prompt)
        context = () if self.engine.has_encoder else ids
        return self._writing(ids, max_tokens, choice, self._ends(prompt, ignore_eos), context=context, stop=stop)

    def stream(
        self, prompt: Prompt, max_tokens: int = 40, *, ignore_eos: bool = False, **choice: Unpack[Choice]
    ) -> Iterator[tuple[int, Array]]:
        """The ids that follow a prompt, one by one, each with the logits [vocab] it was chosen from.

        They are chosen, and end, as in `write`; the end of text is the last of them.
        """
        return self._stream(self._prompt_ids(prompt), max_tokens, choice, self._ends(prompt, ignore_eos))

    def _ends(self, prompt: Prompt, ignore_eos: bool) -> Collection[int]:
        return self.end_ids if isinstance(prompt, str) and not ignore_eos else ()

    def _stream(
        self, ids: list[int], max_tokens: int, choice: Choice, ends: Collection[int], steps: Steps | None = None
    ) -> Iterator[tuple[int, Array]]:
        from weightkit.engine.generate import Sampling, generate

        return generate(self.engine, ids, whole_number(max_tokens, "max_tokens"), Sampling(**choice), ends, steps)

    def chat_prompt(self, messages: Messages) -> str:
        """Messages as the text that the model goes on from as the assistant, by its chat template.

        `messages` are as in `[{"role": "user", "content": "Hello"}]`; the roles are usually system, user and
        assistant. Raises EngineError where they are none, where there is no template, or where it refuses them.
        """
        from weightkit.engine import chat

        where = str(self.checkpoint.folder)
        template = chat.template_of(self.checkpoint.chat_template(), where)
        if template is None:
            raise EngineError(f"{where}: no chat template beside the tokenizer; write the whole prompt, and run that")
        return chat.render(template, messages, self.tokenizer.named, where)

    def chat(
        self,
        messages: Messages,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        **choice: Unpack[Choice],
    ) -> Writing:
        """What the assistant answers to messages, to iterate over in parts of text as they are written.

        Tokens are chosen as in `write`; it ends as that does, and at the tokenizer's end of text. Raises EngineError
        as `chat_prompt` and `write` do.
        """
        _ = self.engine  # that the model cannot be run at all is said first
        prompt = self.chat_prompt(messages)  # that there is no template is said before that there is no tokenizer
        ids = self.tokenizer.encode(prompt, special=False)  # the template has them
        return self._writing(ids, max_tokens, choice, self.end_ids | self._tokenizer_end, stop=stop)

    def _writing(
        self,
        ids: list[int],
        max_tokens: int,
        choice: Choice,
        ends: Collection[int],
        *,
        context: Sequence[int] = (),
        stop: str | Sequence[str] = (),
        steps: Steps | None = None,
        has_text: bool = True,
    ) -> Writing:
        """A text, in step with others that share `steps`; where only its ids are wanted, no tokenizer is needed."""
        from weightkit.engine.writing import Writing

        stop = (stop,) if isinstance(stop, str) else stop
        if stop and self.checkpoint.tokenizer() is None:
            raise EngineError("there is no tokenizer.json, so there is no text that a stop string could be in")
        new = (token_id for token_id, _ in self._stream(ids, max_tokens, choice, ends, steps))
        return Writing(new, self.decode if has_text else _no_text, prompt=ids, context=context, stop=stop)

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a text: of generation_config.json, or else of the config, or else of the tokenizer.

        Raises ConfigError where they are not ids.
        """
        for where, values in ((GENERATION, self.checkpoint.beside(GENERATION)), ("config", self.checkpoint.config)):
            found = (values or {}).get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if found is None:
                continue
            if not all(type(i) is int for i in ids):
                raise ConfigError(f"{self.checkpoint.path}: {where}: eos_token_id is neither an id nor a list of ids")
            return frozenset(ids)
        return self._tokenizer_end

    @property
    def _tokenizer_end(self) -> frozenset[int]:
        end = self.tokenizer.id_named("eos_token")
        return frozenset() if end is None else frozenset([end])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; without a tokenizer, the ids themselves."""
        try:
            return self.tokenizer.decode(ids)
        except EngineError:
            return " ".join(map(str, ids))

    def token_text(self, token_id: int) -> str:
        """How a token reads; its number in brackets where there is no tokenizer."""
        try:
            return self.tokenizer.token(token_id)
        except EngineError:
            return f"<{token_id}>"

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        _ = self.engine  # that the model cannot be run at all is said first
        ids = self.ids(prompt)
        if not ids:
            raise EngineError("the prompt is empty: give at least one token")
        return ids

    def _finite_logits(
        self, ids: Sequence[int], decoder_ids: Sequence[int] | None = None, *, last: bool = False
    ) -> Array:
        from weightkit.engine.finite import require_finite

        logits = self._logits(ids, decoder_ids, last=last)[0]
        require_finite(logits, self.engine, ids, decoder_ids)
        return logits

    def _table(self, logits: Array, most: int) -> list[Token]:
        from weightkit.engine.functions import softmax

        probabilities = softmax(logits)
        order = (-logits).argsort(kind="stable")[:most]
        return [Token(self.token_text(int(i)), int(i), float(logits[i]), float(probabilities[i])) for i in order]


def _is_batch(ids: Any) -> bool:
    return getattr(ids, "ndim", 0) == 2 or (not hasattr(ids, "ndim") and len(ids) > 0 and hasattr(ids[0], "__len__"))


def _is_several(prompt: Any) -> bool:
    return isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, str) and _is_batch(prompt)


def _is_ragged(ids: Any) -> bool:
    return isinstance(ids, Sequence) and len({len(row) for row in ids if hasattr(row, "__len__")}) > 1


def _no_text(_ids: Sequence[int]) -> str:
    return ""
