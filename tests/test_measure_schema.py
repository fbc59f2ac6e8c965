from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import documents
from echopair.measure.merge import merge
from echopair.measure.threshold import Threshold

SCHEMA = json.loads(files("echopair.measure").joinpath("schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def full():
    """Return a document with something in every list and in every place that may be null."""
    times = [1000, 2000, 30_000]  # few, for the document is checked often
    return documents.timed(documents.mismatch(), response=times, service=times, connect=times, schedule_lag=times)


def objects(value, path=()):
    """Yield the path of every object in `value` whose keys the schema fixes."""
    if isinstance(value, dict):
        if path[-1:] != ("percentiles",):
            yield path
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from objects(inner, (*path, place))


def at(value, path):
    for key in path:
        value = value[key]
    return value


FULL = full()
OBJECTS = list(objects(FULL))
KEYS = [(path, key) for path in OBJECTS for key in at(FULL, path) if key != "addresses"]


def refused(document):
    """Return whether the schema refuses `document`; merging, which reads the same schema by itself, must agree."""
    valid = VALIDATOR.is_valid(document)
    with nullcontext() if valid else pytest.raises(ValueError, match=r"^input 1 "):
        merge([document])
    return not valid


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("document", [make() for make in documents.EVERY] + [full()])
def test_documents_fit(document):
    VALIDATOR.validate(document)
    VALIDATOR.validate(json.loads(json.dumps(document)))
    assert not refused(document)


def test_merged_documents_fit():
    VALIDATOR.validate(merge([make() for make in documents.EVERY if make is not documents.opened]))
    VALIDATOR.validate(merge([documents.opened(), documents.opened()]))


@pytest.mark.parametrize("expression", ["p99>1ms", "lag.max>1s", "errors>1", "errors>1%", "rate<1", "bytes_rate<1"])
@pytest.mark.parametrize("make", [documents.closed, documents.empty])
def test_checked_thresholds_fit(expression, make):
    document = make()
    document["thresholds"] = [Threshold.parse(expression).check(document)]
    VALIDATOR.validate(document)


@pytest.mark.parametrize(("path", "key"), KEYS)
def test_every_key_is_required(path, key):
    document = full()
    del at(document, path)[key]
    assert refused(document)


def test_documents_of_versions_that_knew_no_addresses_fit():
    document = full()
    del document["addresses"]
    assert not refused(document)


@pytest.mark.parametrize("path", OBJECTS)
def test_no_other_key_is_allowed(path):
    document = full()
    at(document, path)["another"] = None
    assert refused(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("started_at",), "yesterday"),
        (("exit_status",), 3),
        (("duration_s",), -1.0),
        (("duration_s",), 1e19),
        (("load", "model"), "half-open"),
        (("generator", "limited"), 1),
        (("messages", "sent"), 1.5),
        (("messages", "sent"), True),
        (("messages", "sent"), None),
        (("latency_us", "response", "percentiles", "101"), 1.0),
        (("histograms", "response", "unit"), "us"),
        (("histograms", "response", "buckets", 0), [1]),
        (("histograms", "response", "buckets", 0), [1, 2, 3]),
        (("errors", 0, "phase"), "sleep"),
        (("errors",), {}),
        (("tcp",), []),
    ],
)
def test_wrong_values_are_refused(path, value):
    document = full()
    at(document, path[:-1])[path[-1]] = value
    assert refused(document)


@given(st.data())
def test_merging_refuses_just_what_the_schema_does(data):
    document = copy.deepcopy(FULL)
    path = data.draw(st.sampled_from(OBJECTS))
    key = data.draw(st.sampled_from(sorted({*at(document, path)} - {"significant_bits"})))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False).filter(lambda x: x % 1) | st.text()
    at(document, path)[key] = data.draw(scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars))
    refused(document)
