"""weightkit demo: the guided tour. Every number in it is computed on the spot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import weightkit as wk
from weightkit.cli.output import Json, emit, say, width
from weightkit.demo.facts import facts
from weightkit.demo.quiz import Answer, Lost, ask, lost
from weightkit.report import units
from weightkit.report.pipeline import pipeline
from weightkit.report.tables import Column, Line, table

SHOWN = (("France", "capital"), ("Japan", "currency"), ("Brazil", "continent"), ("Egypt", "language"))
NOISES = (0.3, 0.5, 1.0)
COUNTRY = "France"
ENOUGH = 5  # facts lost, for it to be worth saying of what kind they are


def demo(json: Json = False) -> None:
    """A guided tour on the built-in model: count, look, edit, measure, diff, undo."""
    tour = Tour()
    if json:
        emit("demo", **tour.numbers())
        return
    for chapter in (tour.count, tour.know, tour.grow, tour.heads, tour.parts, tour.noise, tour.undo, tour.go_on):
        say(*chapter())


class Tour:
    """The chapters of the tour, each as lines; what several need is computed once."""

    def __init__(self) -> None:
        self.model = wk.open("demo")
        self.facts = facts()
        self.answers = ask(self.model, self.facts)
        self.known = sum(answer.right for answer in self.answers)
        config = self.model.config
        assert config is not None
        self.layers, self.head_count = config.layers, config.heads

    def count(self) -> Iterator[Line | str]:
        """The pipeline, with its weights."""
        total = self.model.counts().total
        yield from _title("A model is its weights")
        yield from _text(
            f"The built-in model is a small Llama: {total:,} numbers in {len(self.model.checkpoint.tensors)} matrices "
            "and vectors. Text becomes token ids, ids become vectors, and each step marked * multiplies them by "
            "numbers that training found. The rest is a short loop of code."
        )
        yield ""
        yield from pipeline(self.model.registry, total)

    def know(self) -> Iterator[Line | str]:
        """What the model answers."""
        yield from _title("What it knows")
        yield from _text(
            f"It was trained on sentences about {len({f.country for f in self.facts})} countries. Asked "
            f"{len(self.facts)} facts in words it never saw put together so, it gets {self.known} right:"
        )
        yield ""
        yield from _answers([a for a in self.answers if (a.fact.country, a.fact.relation) in SHOWN])

    def grow(self) -> Iterator[Line | str]:
        """The same code on the weights of earlier moments of the training."""
        yield from _title("Same code, other numbers")
        yield from _text(
            "The matrices began as small random numbers and were nudged into knowledge. These are three moments of "
            "one training, run by the same code:"
        )
        yield ""
        prompt = self.answers[0].prompt.replace(self.answers[0].fact.country, "France")
        rows = [
            (name, f"{right} of {len(self.facts)}", f"“{prompt} {said}”")
            for name, right, said in self._snapshots(prompt)
        ]
        columns = [Column("weights"), Column("knows", right=True, style="cyan"), Column("says", shrinks=True)]
        yield from table(columns, rows, width())

    def heads(self) -> Iterator[Line | str]:
        """Every attention head zeroed in turn."""
        yield from _title("Zero one head")
        yield from _text(
            "An attention head is some rows of Q and some columns of O. Set them to zero, ask again, undo; for each "
            f"head in turn. Facts left of {self.known}:"
        )
        yield ""
        losses = self._losses(self._head_addresses())
        grid = [losses[i : i + self.head_count] for i in range(0, len(losses), self.head_count)]
        rows = [
            [f"layer {i}", *(units.count(self.known - len(loss.facts)) for loss in row)] for i, row in enumerate(grid)
        ]
        columns = [Column(""), *(Column(f"head {h}", right=True) for h in range(self.head_count))]
        yield from table(columns, rows)
        yield ""
        yield from self._telling(losses)

    def parts(self) -> Iterator[Line | str]:
        """Whole attentions and FFNs zeroed."""
        yield from _title("Zero a whole part")
        losses = self._losses(self._part_addresses())
        rows = [(loss.address, units.count(self.known - len(loss.facts)), _of_what(loss)) for loss in losses]
        columns = [Column("zeroed", style="cyan"), Column("facts left", right=True), Column("lost", shrinks=True)]
        yield from table(columns, rows, width())

    def noise(self) -> Iterator[Line | str]:
        """Noise on every matrix."""
        yield from _title("Shake every number")
        yield from _text(
            "Gaussian noise on every matrix, relative to the spread of its numbers. Knowledge does not sit on a "
            "knife's edge, until it does:"
        )
        yield ""
        rows = [
            (f"{std:g} × std", f"{right} of {len(self.facts)}", units.real(kl, 3)) for std, right, kl in self._noises()
        ]
        columns = [Column("noise"), Column("facts left", right=True, style="cyan"), Column("KL (nats)", right=True)]
        yield from table(columns, rows)

    def undo(self) -> Iterator[Line | str]:
        """The difference, and the way back."""
        edited = self.model.apply(wk.zero("layers.0.attn[head=0]"))
        found = wk.diff(self.model, edited)
        again = wk.diff(self.model, wk.open("demo"))
        yield from _title("See the difference, and undo it")
        yield from _text("With head 0 of layer 0 zeroed, weightkit diff finds exactly what was changed:")
        yield ""
        rows = [
            (row.address, units.percent(row.changed_fraction), units.percent(row.relative_l2)) for row in found.changed
        ]
        columns = [Column("address", style="cyan"), Column("changed", right=True), Column("relative L2", right=True)]
        yield from table(columns, rows)
        yield f"{found.unchanged} other weights are the same to the bit."
        yield ""
        same = "identical, all of it" if again.identical else "different"
        yield from _text(
            "An edit makes a new model that shares every byte it does not change, so undoing is going back to the "
            f"old one. The original against the file it came from: {same}."
        )

    def go_on(self) -> Iterator[Line | str]:
        """What to try next."""
        yield from _title("Now yours")
        for command in (
            "weightkit count path/to/model",
            "weightkit stats path/to/model 'layers.*.ffn.down'",
            "weightkit edit path/to/model --zero 'layers.0.attn[head=3]' --measure \"Some text.\" --dry-run",
        ):
            yield [("  $ ", "dim"), (command, "bold")]
        yield ""

    def numbers(self) -> dict[str, Any]:
        """The numbers of the tour, for JSON."""
        prompt = self.answers[0].prompt
        addresses = [*self._head_addresses(), *self._part_addresses()]
        return {
            "parameters": self.model.counts().total,
            "facts": len(self.facts),
            "known": self.known,
            "snapshots": {name: right for name, right, _ in self._snapshots(prompt)},
            "left": {loss.address: self.known - len(loss.facts) for loss in self._losses(addresses)},
            "noise": [{"relative_std": std, "known": right, "kl_mean": kl} for std, right, kl in self._noises()],
        }

    def _head_addresses(self) -> list[str]:
        return [f"layers.{i}.attn[head={h}]" for i in range(self.layers) for h in range(self.head_count)]

    def _part_addresses(self) -> list[str]:
        return [f"layers.{layer}.{part}" for part in ("attn", "ffn") for layer in range(self.layers)]

    def _snapshots(self, prompt: str) -> Iterator[tuple[str, int, str]]:
        for name in ("demo:step0", "demo:early", "demo"):
            model = wk.open(name)
            right = sum(answer.right for answer in ask(model, self.facts))
            yield name, right, model.next_tokens(prompt, 1)[0].token.strip()

    def _losses(self, addresses: Sequence[str]) -> list[Lost]:
        return [lost(self.answers, self.model.apply(wk.zero(address)), address) for address in addresses]

    def _noises(self) -> Iterator[tuple[float, int, float]]:
        texts = [f"{a.prompt} {a.fact.answer}." for a in self.answers[:40]]
        for std in NOISES:
            edited = self.model.apply(*(wk.noise(a, relative_std=std, seed=1) for a in self._matrices()))
            right = sum(answer.right for answer in ask(edited, self.facts))
            yield std, right, wk.measure(self.model, edited, texts).kl_mean

    def _matrices(self) -> list[str]:
        return [address for address, weight in self.model.registry.items() if len(weight.shape) == 2]

    def _telling(self, losses: list[Lost]) -> Iterator[Line | str]:
        heaviest = max(losses, key=lambda loss: len(loss.facts))
        sharpest = max((loss for loss in losses if len(loss.facts) >= ENOUGH), key=_sharpness, default=heaviest)
        yield from _text(f"The heaviest is {heaviest.address}: without it the model loses {_of_what(heaviest)}.")
        if sharpest is not heaviest:
            yield from _text(f"The most particular is {sharpest.address}: it takes {_of_what(sharpest)} with it.")
        yield ""
        yield from _text(f"Ask about {COUNTRY} with {heaviest.address} zeroed:")
        yield ""
        asked = [answer for answer in self.answers if answer.fact.country == COUNTRY]
        after = ask(self.model.apply(wk.zero(heaviest.address)), [a.fact for a in asked])
        rows = [
            (a.fact.relation, a.said, b.said, "" if a.said == b.said else "changed")
            for a, b in zip(asked, after, strict=True)
        ]
        columns = [Column(""), Column("before", style="green"), Column("after", style="cyan"), Column("", style="red")]
        yield from table(columns, rows)


def _sharpness(loss: Lost) -> tuple[float, int]:
    return loss.focus(), len(loss.facts)


def _of_what(loss: Lost) -> str:
    """What was lost, in words."""
    if not loss.facts:
        return "nothing"
    answers, relations = loss.by_answer(), loss.by_relation()
    if len(answers) == 1:
        return f"exactly “{next(iter(answers))}” ({units.plural(len(loss.facts), 'fact')})"
    return ", ".join(units.plural(number, name, _PLURAL[name]) for name, number in relations.most_common())


_PLURAL = {"capital": "capitals", "continent": "continents", "language": "languages", "currency": "currencies"}


def _answers(answers: Sequence[Answer]) -> list[Line]:
    lines: list[Line] = []
    for answer in answers:
        style = "bold green" if answer.right else "bold red"
        lines.append([(f"  {answer.prompt} ", ""), (answer.said, style)])
    return lines


def _title(text: str) -> Iterator[Line | str]:
    yield ""
    yield [(f"── {text} ", "bold"), ("─" * max(0, 72 - len(text)), "dim")]
    yield ""


def _text(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, min(width() or 80, 80))
