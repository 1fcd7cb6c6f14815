"""From sections to files: one self-contained HTML page, a Markdown report, the plots as PNG."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stepmark.errors import StoreError
from stepmark.report import drawing
from stepmark.report.blocks import Block, Plot
from stepmark.report.material import Material
from stepmark.report.sections import SECTIONS
from stepmark.store import Run, write_text

INDEX = "index.html"
MARKDOWN = "report.md"
PLOTS = "plots"

_LOADER = PackageLoader("stepmark.report", "templates")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section that has something to show.

    Attributes:
        title: its heading.
        blocks: what is in it.
    """

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Its name inside the page."""
        return _slug(self.title)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report before it is written.

    Attributes:
        title: names the runs.
        sections: those with something to show, in order.
        images: PNG data by file name.
        names: the image of each plot, by the plot's identity.
    """

    title: str
    sections: Sequence[Section]
    images: dict[str, bytes] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def image_path(self, plot: Plot) -> str:
        """Where a plot's image lies, relative to the report."""
        return f"{PLOTS}/{self.names[id(plot)]}"

    def image_uri(self, plot: Plot) -> str:
        """A plot's image as a data URI."""
        data = base64.b64encode(self.images[self.names[id(plot)]]).decode("ascii")
        return f"data:image/png;base64,{data}"


def render(runs: Sequence[Run], out: Path) -> Path:
    """Write the report of one or several runs; what an earlier report left there is replaced.

    Args:
        runs: at least one.
        out: folder for ``index.html``, ``report.md`` and ``plots/``; made if it is missing.

    Returns:
        The path of ``index.html``.

    Raises:
        StoreError: the folder cannot be written.
    """
    page = _compose(Material(runs))
    try:
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
        for path in (out / PLOTS).glob("*.png"):
            if drawing.is_signed(path.read_bytes()):
                path.unlink()
        for name, image in page.images.items():
            (out / PLOTS / name).write_bytes(image)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror})") from None
    write_text(out / MARKDOWN, _write_markdown(page))
    write_text(out / INDEX, _write_html(page))
    return out / INDEX


def _compose(material: Material) -> Page:
    with drawing.style():
        sections = [
            Section(title=title, blocks=blocks)
            for title, build in SECTIONS
            if (blocks := build(material))
        ]
        page = Page(title=f"stepmark: {', '.join(material.runs)}", sections=sections)
        plots = [b for section in sections for b in section.blocks if isinstance(b, Plot)]
        for number, plot in enumerate(plots, 1):
            name = f"{number:02d}-{_slug(plot.title)[:80]}.png"
            page.names[id(plot)] = name
            page.images[name] = drawing.to_png(plot.figure)
    return page


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write_html(page: Page) -> str:
    environment = Environment(
        loader=_LOADER,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else _bind(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html.j2").render(page=page)


def _bind(text: str) -> str:
    """Text in which no line breaks between a number and its percent sign."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def _write_markdown(page: Page) -> str:
    environment = Environment(
        loader=_LOADER,
        autoescape=False,
        # Escapes every value that a template writes, as autoescape does for HTML.
        finalize=lambda value: value if isinstance(value, Markup) else _escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = _fenced
    text = environment.get_template("report.md.j2").render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _escape_markdown(text: str) -> str:
    """Text that reads as itself in Markdown, on one line, also inside a table."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", re.sub(r"&(?=#?\w+;)", "&amp;", text))
    # An underscore inside a word is plain; elsewhere it would begin emphasis.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _fenced(text: str) -> Markup:
    """Lines as a code block, with a fence longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{text}\n{fence}")
