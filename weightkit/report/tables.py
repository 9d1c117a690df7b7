"""Tables of text: aligned columns, cut to a width where there is one, lines of styled spans.

Everything that comes from a file is escaped here, so that a tensor's name can neither move the cursor
nor forge a row.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from weightkit.errors import printable

Span = tuple[str, str]  # text, and a rich style or ""
Line = list[Span]

GAP = "  "
MOST_WIDTH = 200  # of a column


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    style: str = ""
    shrinks: bool = False  # may be cut, in its middle, where the line is too long
    below: bool = False  # the last column: a sentence, that goes below its row where the line is too long


def widest(texts: Iterable[str], most: int = MOST_WIDTH) -> int:
    """The width of a column of texts. A very long one stands out of its column, so that it pads no other rows."""
    return min(max(map(len, texts), default=0), most)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> Iterator[Line]:
    """The lines of a table, a header first. `width` None never cuts."""
    cells = [tuple(map(printable, row)) for row in rows]
    widths = [widest([c.title, *(row[i] for row in cells)], width or MOST_WIDTH) for i, c in enumerate(columns)]
    if width is not None and columns[-1].below and _over(widths, width) > 0:
        yield from _with_sentences(columns[:-1], cells, width)
        return
    if width is not None:
        _shrink(columns, widths, width)
        cells = [tuple(map(_cut, row, widths)) for row in cells]
    yield _stripped([(_padded(c.title, c, size) + GAP, "dim") for c, size in zip(columns, widths, strict=True)])
    for row in cells:
        fitted = zip(row, columns, widths, strict=True)
        yield _stripped([(_padded(cell, column, size) + GAP, column.style) for cell, column, size in fitted])


def plain(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table as lines without styles, nothing cut: what goes into a pipe, which may be a hundred thousand rows."""
    texts = (tuple(row) for row in ([c.title for c in columns], *rows))
    cells = [row if "".join(row).isprintable() else tuple(map(printable, row)) for row in texts]
    widths = map(widest, zip(*cells, strict=True))
    line = GAP.join(f"{{:{'>' if c.right else '<'}{width}}}" for c, width in zip(columns, widths, strict=True))
    return (line.format(*row).rstrip() + "\n" for row in cells)


_TIED = "\xa0"  # a space that no line ends at; `printable` leaves none in a text


def pairs(rows: Iterable[tuple[str, str]], width: int | None = None, *, prose: bool = False) -> list[Line]:
    """Lines of a name and a value, aligned; a value too long for `width` goes on below, None never breaks it.

    Lines end after an item of a list; those of prose after any word.
    """
    rows = list(rows)
    indent = widest(name for name, _ in rows)
    lines: list[Line] = []
    for name, value in rows:
        text = printable(value)
        room = max(20, width - indent - len(GAP)) if width else len(text) + 1
        items = text if prose else text.replace(" ", _TIED).replace("," + _TIED, ", ")
        for part in textwrap.wrap(items, room, break_on_hyphens=False) or [text]:
            lines.append([(f"{name:<{indent}}{GAP}", "dim"), (part.replace(_TIED, " "), "")])
            name = ""
    return lines


def _with_sentences(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> Iterator[Line]:
    """A table whose last column is not among these: it goes below each row."""
    head, *rows = table(columns, [row[:-1] for row in cells], width)
    yield head
    for line, row in zip(rows, cells, strict=True):
        yield line
        for part in textwrap.wrap(row[-1], max(20, width - 4), break_on_hyphens=False):
            yield [("    " + part, "dim")]


def _over(widths: Sequence[int], width: int) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1) - width


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> None:
    over = _over(widths, width)
    for i in sorted((i for i, c in enumerate(columns) if c.shrinks), key=lambda i: -widths[i]):
        if over <= 0:
            return
        cut = min(over, widths[i] - max(12, len(columns[i].title)))
        if cut > 0:
            widths[i] -= cut
            over -= cut


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 3  # the end of a name says more than its beginning
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def _padded(text: str, column: Column, width: int) -> str:
    return text.rjust(width) if column.right else text.ljust(width)


def _stripped(line: Line) -> Line:
    while line and not line[-1][0].strip():
        line.pop()
    return [*line[:-1], (line[-1][0].rstrip(), line[-1][1])] if line else line


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. Text is escaped as in tables; what a spreadsheet would run gets an apostrophe."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return out.getvalue()


def _csv_cell(text: str) -> str:
    text = printable(text)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def markdown(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(_markdown_cell(c.title) for c in columns) + " |"]
    lines.append("|" + "|".join(" ---: " if c.right else " --- " for c in columns) + "|")
    lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _markdown_cell(text: str) -> str:
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "|*_[]`" else c for c in text)
