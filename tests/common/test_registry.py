"""Registries: built-in items by name, items of other packages, and messages for mistakes."""

import fractions
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from pushforward.common.registry import Registry, UnknownNameError


def registry() -> Registry[type]:
    return Registry[type]("shape", {"fraction": "fractions:Fraction", "missing": "no_such_module:Thing"})


def definition() -> Callable[[], type]:
    """Return a function that defines the same class anew at every call, as running a notebook cell again does."""

    def define() -> type:
        class Square:
            pass

        return Square

    return define


def test_a_builtin_is_found_by_its_name_and_back() -> None:
    shapes = registry()
    assert shapes["fraction"] is fractions.Fraction
    assert shapes.name_of(fractions.Fraction) == "fraction"
    assert shapes.name_of(int) is None


def test_a_builtin_is_imported_on_first_use() -> None:
    program = (
        "import sys; from pushforward.common.registry import Registry\n"
        "shapes = Registry('shape', {'colour': 'colorsys:rgb_to_hsv'})\n"
        "shapes.names(); assert 'colorsys' not in sys.modules\n"
        "shapes['colour']; assert 'colorsys' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=60)


def test_a_registered_item_is_listed_with_the_builtins() -> None:
    shapes = registry()

    @shapes.register("square")
    class Square:
        pass

    assert shapes.names() == ["fraction", "missing", "square"]
    assert shapes["square"] is Square
    assert shapes.name_of(Square) == "square"


def test_an_item_says_what_it_is_without_an_import() -> None:
    shapes = Registry[object]("shape", {"missing": "no_such_module:Thing"}, about={"missing": "a thing"})

    @shapes.register("square")
    class Square(fractions.Fraction):
        """
        Four equal sides.

        More about it.
        """

    def made() -> None:
        "A function's own line"

    @shapes.register("plain")
    class Plain(Square):
        pass

    shapes.register("made", definition=made)(Square())
    about = {name: shapes.about(name) for name in (*shapes.names(), "unknown")}
    assert about == {
        "missing": "a thing",
        "square": "Four equal sides",
        "plain": "",  # not that of the base class
        "made": "A function's own line",
        "unknown": "",
    }


def test_the_same_definition_replaces_the_former() -> None:
    shapes, define = registry(), definition()
    first, second = define(), define()
    shapes.register("square")(first)
    shapes.register("square")(second)
    assert shapes["square"] is second


@pytest.mark.parametrize("name", ["fraction", "square"])
def test_another_definition_of_a_used_name_is_refused(name: str) -> None:
    shapes = registry()
    square = shapes.register("square")(definition()())
    with pytest.raises(ValueError, match=f"^register: the shape '{name}' exists already; take another name$"):
        shapes.register(name)(int)
    assert shapes["square"] is square
    assert shapes["fraction"] is fractions.Fraction


def test_a_definition_of_another_module_is_another_one() -> None:
    shapes, define = registry(), definition()
    shapes.register("square")(define())
    other = define()
    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="exists already"):
        shapes.register("square")(other)


def test_a_made_item_is_the_same_if_its_definition_is() -> None:
    sizes = Registry[int]("size", {})
    sizes.register("small", definition=fractions.Fraction)(1)
    sizes.register("small", definition=fractions.Fraction)(2)
    assert sizes["small"] == 2
    with pytest.raises(ValueError, match=r"^register: the size 'small' exists already; take another name$"):
        sizes.register("small", definition=int)(3)


@pytest.mark.parametrize("name", ["", "auto", "My-Square", "my_square", "my square", "square-", "a=b", "1,2"])
def test_a_name_that_cannot_be_a_value_on_the_command_line_is_refused(name: str) -> None:
    message = f"register: expected a name such as my-shape; got {name!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        registry().register(name)


@pytest.mark.parametrize("name", ["square", "l2", "2d", "two-moons", "mle+energy", "rows/mle"])
def test_names_like_those_that_are_built_in_are_taken(name: str) -> None:
    shapes = registry()
    shapes.register(name)(int)
    assert shapes[name] is int


def test_an_unknown_name_gets_the_known_ones_and_a_near_one() -> None:
    message = "unknown shape 'fractoin'; did you mean 'fraction'? known: fraction, missing"
    with pytest.raises(UnknownNameError, match=f"^{re.escape(message)}$"):
        registry()["fractoin"]
    with pytest.raises(LookupError, match=r"^unknown shape 'zzz'; known: fraction, missing$"):
        registry()["zzz"]


def test_what_was_added_can_be_removed_and_builtins_cannot() -> None:
    shapes = registry()
    shapes.register("square")(int)
    shapes.remove("square")
    assert (shapes.names(), shapes.name_of(int), shapes.about("square")) == (["fraction", "missing"], None, "")
    shapes.register("square")(float)  # the name is free again
    for name in ("fraction", "circle"):
        with pytest.raises(UnknownNameError, match=f"unknown shape '{name}'"):
            shapes.remove(name)
