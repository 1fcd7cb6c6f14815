"""Comparisons as a table, Markdown, JSON and JUnit."""

import dataclasses
import html
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepmark.columns import aligned
from stepmark.compare.verdict import Comparison, Counter, Verdict, drift, exit_code
from stepmark.errors import StoreError
from stepmark.units import format_change, format_percent, format_seconds

_HEADER = ("scenario", "base", "head", "change", "interval", "detectable", "verdict")
_EMPTY = "-"
_FRACTION = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")

Skipped = Mapping[str, str]
_NONE: Skipped = {}


def write(
    comparisons: Sequence[Comparison], format: str, *, title: str, skipped: Skipped = _NONE
) -> str:
    """All comparisons in one of `FORMATS`.

    Args:
        comparisons: in the order to show.
        format: a key of `FORMATS`.
        title: what was compared.
        skipped: why scenarios were compared on neither side, by id.
    """
    return FORMATS[format](comparisons, title, skipped)


def _table(comparisons: Sequence[Comparison], title: str, skipped: Skipped) -> str:
    rows = aligned(_HEADER, map(_row, comparisons), left=(0, len(_HEADER) - 1))
    words = [f"{c.scenario_id}: {_in_words(c)}" for c in comparisons if _in_words(c)]
    words += [f"{scenario_id}: skipped: {reason}" for scenario_id, reason in skipped.items()]
    return "\n".join([title, *rows, *words, *_closing(comparisons, skipped)]) + "\n"


def _markdown(comparisons: Sequence[Comparison], title: str, skipped: Skipped) -> str:
    closing = (f"**{_escaped(text)}**" for text in _closing(comparisons, skipped))
    lines = [f"### {_escaped(title)}", "", *closing, ""]
    lines.append("| " + " | ".join((*_HEADER, "why")) + " |")
    lines.append("|---|--:|--:|--:|--:|--:|---|---|")
    for comparison in comparisons:
        cells = (*_row(comparison), _in_words(comparison))
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    for scenario_id, reason in skipped.items():
        cells = (scenario_id, *[_EMPTY] * (len(_HEADER) - 2), "skipped", reason)
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    return "\n".join(lines) + "\n"


def as_data(
    comparisons: Sequence[Comparison], title: str, skipped: Skipped = _NONE
) -> dict[str, Any]:
    """All comparisons, ready for JSON; more may be added."""
    return {
        "title": title,
        "exit_code": exit_code(comparisons),
        "drift": drift(comparisons),
        "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
        "skipped": dict(skipped),
    }


def as_json(data: dict[str, Any]) -> str:
    """JSON for people and for programs; no NaN in it."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def add_to_job_summary(
    comparisons: Sequence[Comparison], *, title: str, skipped: Skipped = _NONE
) -> None:
    """Add the Markdown to the page of a CI job, where there is one (``$GITHUB_STEP_SUMMARY``).

    Raises:
        StoreError: it cannot be written.
    """
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(_markdown(comparisons, title, skipped) + "\n")
    except OSError as error:
        raise StoreError(
            f"GITHUB_STEP_SUMMARY={path}: cannot be written ({error.strerror})"
        ) from None


def _json(comparisons: Sequence[Comparison], title: str, skipped: Skipped) -> str:
    return as_json(as_data(comparisons, title, skipped))


def _junit(comparisons: Sequence[Comparison], title: str, skipped: Skipped) -> str:
    """A regression is a failure, what is inconclusive is skipped, what cannot be told an error."""
    num_tests = len(comparisons) + len(skipped)
    suite = ElementTree.Element("testsuite", name=_valid_in_xml(title), tests=str(num_tests))
    kinds: Tally[str] = Tally()
    cases = [(c.scenario_id, _junit_kind(c), f"{c.verdict}: {_in_words(c)}") for c in comparisons]
    cases += [(scenario_id, "skipped", reason) for scenario_id, reason in skipped.items()]
    for scenario_id, kind, message in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname="stepmark", name=_valid_in_xml(scenario_id)
        )
        if kind:
            kinds[kind] += 1
            ElementTree.SubElement(case, kind, message=_valid_in_xml(message))
    suite.set("failures", str(kinds["failure"]))
    suite.set("errors", str(kinds["error"]))
    suite.set("skipped", str(kinds["skipped"]))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


FORMATS: dict[str, Callable[[Sequence[Comparison], str, Skipped], str]] = {
    "table": _table,
    "markdown": _markdown,
    "json": _json,
    "junit": _junit,
}


def _junit_kind(comparison: Comparison) -> str:
    if comparison.is_regression:
        return "failure"
    if comparison.verdict in (Verdict.INCOMPARABLE, Verdict.MISSING):
        return "error"
    return "skipped" if comparison.verdict is Verdict.INCONCLUSIVE else ""


def _row(comparison: Comparison) -> tuple[str, ...]:
    c = comparison
    interval = _EMPTY
    if c.low is not None and c.high is not None:
        interval = f"{format_change(c.low)} to {format_change(c.high)}"
    return (
        c.scenario_id,
        _EMPTY if c.base_s is None else format_seconds(c.base_s),
        _EMPTY if c.head_s is None else format_seconds(c.head_s),
        _EMPTY if c.change is None else format_change(c.change),
        interval,
        _EMPTY if c.detectable is None else format_percent(c.detectable),
        str(c.verdict),
    )


def _in_words(comparison: Comparison) -> str:
    """Reason, exact figures that differ, remarks."""
    counters = [
        f"{c.name} {' -> '.join(_shown(c))}{' (grew)' if c.is_regression else ''}"
        for c in comparison.counters
    ]
    return "; ".join(filter(None, [comparison.reason, *counters, *comparison.remarks]))


def _shown(counter: Counter) -> tuple[str, str]:
    """Both sides' figures; losses with few digits, where these still tell them apart."""
    whole = (counter.base, counter.head)
    if "loss" not in counter.name:
        return whole
    then, now = (_FRACTION.findall(text) for text in whole)
    if any(a != b and _rounded(a) == _rounded(b) for a, b in zip(then, now, strict=False)):
        return whole
    base, head = (_FRACTION.sub(lambda found: _rounded(found[0]), text) for text in whole)
    return base, head


def _rounded(number: str) -> str:
    return f"{float(number):.6g}"


def _closing(comparisons: Sequence[Comparison], skipped: Skipped) -> list[str]:
    """How many of each verdict; and that the machine may have drifted."""
    tally = Tally(c.verdict for c in comparisons)
    counts = ", ".join(f"{tally[v]} {v}" for v in Verdict if tally[v]) or "nothing was compared"
    counts += f", {len(skipped)} skipped" if skipped else ""
    return list(filter(None, [counts, drift(comparisons)]))


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _valid_in_xml(text: str) -> str:
    """Text without the control characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
