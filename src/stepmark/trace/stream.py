"""Events of a chrome trace one after another: millions of them at once would fill the memory."""

import json
import re
from collections.abc import Iterator
from typing import Any

_decode = json.JSONDecoder().raw_decode
_space = re.compile(r"\s*").match
_comma = re.compile(r"\s*,\s*").match
_EVENTS = "traceEvents"


class FormatError(ValueError):
    """The text is no JSON of a trace, or is cut off."""


def events_of(text: str) -> Iterator[Any]:
    """The events of a trace, which is an object with a list of them, or such a list itself.

    Raises:
        FormatError: it is neither.
    """
    reader = _Reader(text)
    match reader.next():
        case "[":
            yield from reader.items()
        case "{":
            yield from reader.items_of(_EVENTS)
        case _:
            reader.value()
            raise FormatError(f"it has no list of {_EVENTS!r}")
    if reader.next():
        raise FormatError(f"more at character {reader.at} after its end")


class _Reader:
    """A place in a text of JSON, which moves on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def next(self) -> str:
        """The next character that is not space, which stays the next; empty at the end."""
        found = _space(self.text, self.at)
        assert found is not None, "it may be empty"
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """Any value, whole."""
        try:
            found, self.at = _decode(self.text, self.at)
        except json.JSONDecodeError as error:
            raise FormatError(str(error)) from None
        return found

    def items(self) -> Iterator[Any]:
        """Each value of a list."""
        self.at += 1
        if self.next() != "]":
            text, at = self.text, self.at
            while True:
                try:
                    found, at = _decode(text, at)
                except json.JSONDecodeError as error:
                    raise FormatError(str(error)) from None
                yield found
                comma = _comma(text, at)
                if comma is None:
                    break
                at = comma.end()
            self.at = at
            self.next()
        self._expect("]")

    def items_of(self, name: str) -> Iterator[Any]:
        """Each value of the list that an object has under a name; its other members are skipped."""
        is_found = False
        more = "{"
        while more:
            self._expect(more)
            if self.next() == "}" and more == "{":
                break
            key = self.value()
            self.next()
            self._expect(":")
            if self.next() == "[" and key == name:
                is_found = True
                yield from self.items()
            else:
                self.value()
            more = "," if self.next() == "," else ""
        self._expect("}")
        if not is_found:
            raise FormatError(f"it has no list of {name!r}")

    def _expect(self, character: str) -> None:
        if self.text[self.at : self.at + 1] != character:
            raise FormatError(f"no {character!r} at character {self.at}")
        self.at += 1
