"""Numbers as text: digits follow the standard error."""

from pushforward.common.numbers import decimals_of, fixed, measured, significant


def test_decimals_of_a_column_follow_its_standard_errors() -> None:
    assert decimals_of([0.0047, 0.0036]) == 4
    assert decimals_of([0.0055, 0.00090, 0.0014]) == 5
    assert decimals_of([0.046, 0.24, 0.33]) == 3
    # Large errors do not hide small ones, and small ones do not blow up large ones.
    assert decimals_of([0.0002, 3.0]) == 4
    assert decimals_of([37.0, 1200.0]) == 0
    assert decimals_of([None, float("nan"), 0.0]) is None
    assert decimals_of([]) is None
    assert fixed(1234.5, 1, 0.04, signed=True) == "+1,234.5 ± 0.0"
    assert fixed(-0.5, 2) == "\u22120.50"
    assert fixed(None, 2) == fixed(float("nan"), 2, 1.0) == "\u2013"
    assert fixed(float("inf"), 2) == "∞"
    assert fixed(0.5, None, 0.031) == measured(0.5, 0.031)


def test_digits_follow_the_standard_error() -> None:
    assert measured(2.40359, 0.00474) == "2.4036 ± 0.0047"
    assert measured(-0.5, 0.031, signed=True) == "\u22120.500 ± 0.031"
    assert measured(12.0, 0.0) == "12.00"
    assert measured(float("inf"), float("inf")) == "∞"
    assert measured(None) == measured(float("nan"), 1.0) == "\u2013"
    assert significant(1.5e9, 2) == "1.5\xa0\u00d7\xa010⁹"
