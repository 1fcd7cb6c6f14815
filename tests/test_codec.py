import json
import math
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

import pytest

from stepmark.codec import DecodeError, decode, encode


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(Enum):
    LOW = 1


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    flag: bool
    colour: Colour
    inners: tuple[Inner, ...]
    facts: dict[str, str]
    inner: Inner | None
    rows: tuple[tuple[float, ...], ...] = ()
    levels: dict[str, Level] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name='': must not be empty")


OUTER = Outer(
    name='é/"\\ \x00',
    flag=True,
    colour=Colour.BLUE,
    inners=(Inner(number=-3), Inner(number=2**70, share=0.1)),
    facts={"a b": "c", "": ""},
    inner=None,
    rows=((1.0, 2.5), ()),
    levels={"x": Level.LOW},
    anything={"deep": [1, None, "x"]},
)
# What `encode` makes of it, without optional fields.
DATA = {
    "name": "n",
    "flag": False,
    "colour": "red",
    "inners": [{"number": 1}],
    "facts": {},
    "inner": {"number": 2, "share": None},
}


def test_what_was_encoded_decodes_to_an_equal_object_through_json_text() -> None:
    assert decode(Outer, json.loads(json.dumps(encode(OUTER)))) == OUTER


def test_decoded_types_are_the_declared_ones() -> None:
    outer = decode(Outer, {**DATA, "rows": [[1, 2]]})
    assert type(outer.colour) is Colour
    assert type(outer.inners) is tuple
    assert outer.inner == Inner(number=2)
    assert [type(value) for value in outer.rows[0]] == [float, float]


@pytest.mark.parametrize("number", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 3.0])
def test_floats_survive_json_bit_for_bit(number: float) -> None:
    back = decode(float, json.loads(json.dumps(encode(number))))
    assert type(back) is float
    assert back.hex() == number.hex()


def test_a_float_that_json_wrote_as_a_whole_number_is_a_float_again() -> None:
    assert type(decode(float, 3)) is float
    assert type(decode(float | None, 3)) is float


def test_a_whole_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(DecodeError, match="float"):
        decode(float, 10**400)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused_both_ways(value: float) -> None:
    with pytest.raises(ValueError, match="strict JSON has no such number"):
        encode({"x": [value]})
    with pytest.raises(DecodeError):
        decode(float, value)


@pytest.mark.parametrize("value", [{1, 2}, b"x", 1j, object(), Inner])
def test_a_type_without_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="has no JSON form"):
        encode(value)


def test_fields_with_a_default_may_be_left_out() -> None:
    assert decode(Inner, {"number": 1}) == Inner(number=1, share=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"naem": 1}, "Outer: unknown field 'naem'"),
        ({"inners": [{"number": 1}, {"number": 1, "x": 2}]}, r"inners\[1\]: unknown field 'x'"),
        ({"name": 5}, "Outer.name: expected str, found int"),
        ({"name": None}, "Outer.name: expected str, found NoneType"),
        ({"name": ""}, "Outer: name='': must not be empty"),
        ({"flag": 1}, "Outer.flag: expected bool, found int"),
        ({"colour": "green"}, r"Outer.colour: 'green' is none of \['red', 'blue'\]"),
        ({"colour": ["red"]}, r"Outer.colour: \['red'\] is none of"),
        ({"inners": {}}, "Outer.inners: expected list, found dict"),
        ({"inners": [None]}, r"Outer.inners\[0\]: expected dict, found NoneType"),
        ({"inners": [{"number": 1.0}]}, r"inners\[0\].number: expected int, found float"),
        ({"inners": [{"number": True}]}, r"inners\[0\].number: expected int, found bool"),
        ({"inners": [{"number": 1, "share": True}]}, "share: expected float, found bool"),
        ({"inners": [{"number": 1, "share": "0.1"}]}, "share: expected float, found str"),
        ({"facts": {"a": 1}}, "Outer.facts.a: expected str, found int"),
        ({"facts": []}, "Outer.facts: expected dict, found list"),
        ({"inner": []}, "Outer.inner: expected dict, found list"),
        ({"rows": [[1, None]]}, r"Outer.rows\[0\]\[1\]: expected float, found NoneType"),
    ],
)
def test_data_of_another_shape_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(Outer, {**DATA, **change})


@pytest.mark.parametrize("name", sorted(DATA))
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    with pytest.raises(DecodeError, match=f"Outer: .*missing .*'{name}'"):
        decode(Outer, {key: value for key, value in DATA.items() if key != name})


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_an_object_is_not_made_from_anything_but_an_object(data: object) -> None:
    with pytest.raises(DecodeError, match="Outer: expected dict, found"):
        decode(Outer, data)


def test_a_sparse_copy_leaves_out_what_has_its_default_and_reads_back() -> None:
    outer = Outer(
        name="a",
        flag=False,
        colour=Colour.RED,
        inners=(Inner(number=1), Inner(number=2, share=0.5)),
        facts={},
        inner=None,
    )
    data = encode(outer, sparse=True)
    assert data["inners"] == [{"number": 1}, {"number": 2, "share": 0.5}]
    assert "rows" not in data
    assert data["inner"] is None, "it has no default"
    assert decode(Outer, data) == outer
