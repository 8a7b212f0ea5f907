"""Schemas are written as JSON and read back; damaged ones are refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import Schema
from pushforward.datasets.tables.numbers.spellings import TRUE_FALSE, Spelling
from tests.fixtures.tables import load_mixed_table


def test_schema_round_trip_through_json(tmp_path: Path) -> None:
    schema = load_mixed_table(tmp_path).schema
    written = {"tenths": Spelling(decimal=",", percent=True, example="1,5%"), "flag": TRUE_FALSE}
    spelled = schema.with_spellings(written)
    assert spelled.to_dict()["columns"][0]["spelling"] == {"decimal": ",", "percent": True}
    assert "spelling" not in schema.to_dict()["columns"][0]
    declared = dataclasses.replace(schema, missing_values=(-9999.0, 3.4028234663852886e38))
    for kept in (schema, declared, spelled):
        assert Schema.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False))) == kept


BAD_SCHEMAS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing key": (lambda d: d.pop("context"), "schema: expected the keys"),
    "unknown key": (lambda d: d.update(more=1), "schema: expected the keys"),
    "unknown column key": (lambda d: d["columns"][0].update(more=1), "schema: column: expected the keys"),
    "text for a number": (lambda d: d["columns"][0].update(minimum="0"), "column 'tenths' has minimum='0'"),
    "unknown mark": (lambda d: d["columns"][0].update(spelling={"decimal": ";"}), "column 'tenths' has a damaged"),
    "text for a mark": (lambda d: d["columns"][0].update(spelling={"decimal": ",", "percent": "no"}), "damaged"),
    "other words": (lambda d: d["columns"][0].update(spelling={"decimal": ".", "words": {"a": 1}}), "damaged"),
    "not a list": (lambda d: d.update(columns={}), "expected a list of columns; got dict"),
    "order without a column": (lambda d: d["order"].pop(), "does not list the columns"),
    "missing values": (lambda d: d.update(missing_values=["-1"]), "'missing_values' is not a list of numbers"),
    "width": (lambda d: d.update(file_columns="6"), "file_columns='6'"),
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_damaged_schema_is_refused(name: str, tmp_path: Path) -> None:
    damage, message = BAD_SCHEMAS[name]
    content = load_mixed_table(tmp_path).schema.to_dict()
    damage(content)
    with pytest.raises(DataError, match=message):
        Schema.from_dict(content)
