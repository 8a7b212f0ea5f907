"""Text of messages: near names are suggested, and long text is cut."""

import shlex

import pytest

from pushforward.common.text import did_you_mean, leave_out, nearest, one_line, shorten, shorten_middle, unknown_name

KNOWN = ("moons", "two-moons", "8gaussians")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mooons", "moons"), ("Two_Moons", "two-moons"), ("8 gaussians", "8gaussians"), ("zzz", ""), ("", "")],
)
def test_the_nearest_name(name: str, expected: str) -> None:
    assert nearest(name, KNOWN) == expected
    assert did_you_mean(name, KNOWN) == (f"did you mean '{expected}'? " if expected else "")


def test_a_cutoff_decides_how_near_a_name_must_be() -> None:
    assert nearest("mouse", KNOWN, 0.9) == ""
    assert nearest("mouse", KNOWN, 0.5) == "moons"
    assert nearest("mouse", (), 0.0) == ""


def test_an_unknown_name_gets_a_suggestion_only_if_one_is_near() -> None:
    assert unknown_name("dataset", "mooons", KNOWN) == (
        "unknown dataset 'mooons'; did you mean 'moons'? known: moons, two-moons, 8gaussians"
    )
    assert unknown_name("dataset", "zzz", KNOWN) == "unknown dataset 'zzz'; known: moons, two-moons, 8gaussians"


def test_the_known_names_may_be_an_iterator() -> None:
    assert unknown_name("flow", "mfa", iter(["maf"])) == "unknown flow 'mfa'; did you mean 'maf'? known: maf"


@pytest.mark.parametrize("length", [4, 5, 9, 10])
def test_long_text_is_cut_to_its_length(length: int) -> None:
    text = "0123456789abcdef"
    end, middle = shorten(text, length), shorten_middle(text, length)
    assert len(end) == len(middle) == length
    assert end == text[: length - 1] + "…"
    before, after = middle.split("…")
    assert text.startswith(before)
    assert text.endswith(after)
    assert shorten(text[:length], length) == shorten_middle(text[:length], length) == text[:length]


def test_an_error_on_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"
    assert one_line(ValueError()) == "ValueError"


def test_columns_to_leave_out_are_one_argument_of_a_shell() -> None:
    assert leave_out("a", "b") == "data.drop=a,b"
    assert shlex.split(leave_out("credit score", "it's")) == ["data.drop=credit score,it's"]
