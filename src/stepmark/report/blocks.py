"""What a section is made of. All text is plain: the templates escape it for HTML or Markdown."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure

from stepmark.report.wording import EMPTY

_MOST_OPEN_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A paragraph of explanation."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement, with the word that it is about."""

    lead: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Statements as a list."""

    kind: ClassVar[str] = "findings"
    items: Sequence[Finding]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of written cells.

    Attributes:
        header: one name per column.
        rows: one text per column each.
        caption: what is in it; may be empty.
        text_columns: positions of the columns that are words; the others are numbers.
        foldable: a plot or the summary says what matters in it, so a long one is shut at first.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = frozenset({0})
    foldable: bool = False

    @property
    def folded(self) -> bool:
        """Whether to show its caption alone until it is opened."""
        return self.foldable and len(self.rows) > _MOST_OPEN_ROWS

    def without_empty_columns(self) -> "Table":
        """The table without the columns that have no value in any row."""
        kept = [
            i
            for i in range(len(self.header))
            if any(row[i] not in ("", EMPTY) for row in self.rows)
        ]
        return dataclasses.replace(
            self,
            header=[self.header[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
            text_columns=frozenset(kept.index(i) for i in self.text_columns if i in kept),
        )


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn figure.

    Attributes:
        title: what it shows; its file is named after it.
        figure: the drawing.
        wide: give it the page's whole width; others stand side by side where there is room.
    """

    kind: ClassVar[str] = "plot"
    title: str
    figure: Figure = field(compare=False)
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy or to read as they are.

    Attributes:
        text: the lines.
        folded_under: a line to open them by; empty shows them at once.
    """

    kind: ClassVar[str] = "code"
    text: str
    folded_under: str = ""


Block = Heading | Paragraph | Findings | Table | Plot | Code
