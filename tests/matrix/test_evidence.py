"""What is kept of a measurement, and when it stops to count."""

import dataclasses
import os
import sys

import pytest

from nrl_patches.matrix.evidence import COMMITTED, Cell, Evidence, Measurement, write_whole
from nrl_patches.matrix.fingerprint import fingerprint

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "nrl-patches": "0.1.0"}


def test_what_is_written_is_what_is_read(tmp_path):
    cell = Cell("needed", declared=True, code="c0de", present=True, evidence={"gap": 1.5, "why": "ü", "yes": True})
    then, before = (dataclasses.replace(cell, date=date) for date in ("2026-11-21", "2026-11-19"))
    measurements = {
        "standin==1.0": Measurement("2026-11-21", VERSIONS, {"b": cell, "a": cell, "then": then, "before": before}),
        "standin==1.1": Measurement("2026-11-20", VERSIONS, problem="no wheel"),
    }
    evidence = Evidence(measurements, {"standin": {"0.9": "", "1.0": "", "1.1": "yanked: oh"}})
    file = tmp_path / "matrix.json"
    write_whole(file, evidence.text())
    read = Evidence.read(file)
    assert read.measurements == measurements
    assert read.releases == evidence.releases
    assert read.text() == evidence.text()
    assert read.text().count("2026-11-21") == 1  # A cell has no need of the date that its measurement has.
    assert Evidence.read(tmp_path / "other.json") == Evidence()


WHOLE = '{"schema": 1, "releases": {}, "measurements": {%s}}'
CELL = '"standin==1": {"date": "", "versions": {}, "problem": "", "cells": {"a": {"colour": "red"}}}'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b'{"schema": 1, "measure', "JSONDecodeError: "),
        (b"\xff\xfe\x00", "UnicodeDecodeError: "),
        (b"[]", "AttributeError: "),
        (b'{"schema": 2}', "ValueError: schema 2"),
        (b'{"schema": 1}', "KeyError: 'measurements'"),
        ((WHOLE % '"standin": {}').encode(), "ValueError: "),
        ((WHOLE % CELL).encode(), "TypeError: .*'colour'"),
    ],
)
def test_what_is_not_whole_or_of_another_schema_is_refused_with_the_file_and_what_to_do(tmp_path, content, found):
    file = tmp_path / "matrix.json"
    file.write_bytes(content)
    step = f"delete the file, or .* `nrl-patches matrix --clean --folder {tmp_path}`"
    said = f"^{file}: expected .* schema 1; found {found}.*; next step: {step}"
    with pytest.raises(ValueError, match=said):
        Evidence.read(file)


def test_what_the_package_was_released_with_is_read_and_written_as_it_is():
    assert Evidence.read(COMMITTED).text() == COMMITTED.read_text(encoding="utf-8")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "matrix.json"
    write_whole(file, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def fingerprinted(sandbox, **fields):
    name = sandbox.patch(**fields)
    registry = sandbox.registry()
    for module in [m for m in sys.modules if m.startswith(sandbox.patches)]:
        del sys.modules[module]
    return fingerprint(registry.patches[name])


def test_a_fingerprint_changes_with_the_code_and_not_with_what_people_read(sandbox):
    before = fingerprinted(sandbox)
    assert fingerprinted(sandbox) == before
    assert fingerprinted(sandbox, affected=f"{sandbox.name}>=1,<3", opt_out="NRL_DISABLE_OTHER") == before
    assert fingerprinted(sandbox, more="# a comment\n\n") == before
    assert fingerprinted(sandbox, more="FACTOR = 2\n") != before
    assert fingerprinted(sandbox, fix="return lambda: 3") != before
    assert fingerprinted(sandbox, required=True) != before
    text = fingerprinted(sandbox, more='TEXT = """\n# one\n"""\n')
    assert fingerprinted(sandbox, more='TEXT = """\n# two\n"""\n') != text


@pytest.mark.parametrize(
    "line",
    [
        "from {package} import _helper",
        "from {package}._helper import FACTOR",
        "import {package}._helper as helper",
        "from . import _helper",
        "from ._helper import FACTOR",
    ],
)
def test_a_fingerprint_covers_the_helpers_that_a_patch_imports(sandbox, line):
    more = f"{line.format(package=sandbox.patches)}\n"
    sandbox.write(f"{sandbox.patches}/_helper.py", "FACTOR = 1\n")
    before = fingerprinted(sandbox, more=more)
    sandbox.write(f"{sandbox.patches}/_helper.py", "FACTOR = 1  # one\n")
    assert fingerprinted(sandbox, more=more) == before
    sandbox.write(f"{sandbox.patches}/_helper.py", "FACTOR = 22\n")
    assert fingerprinted(sandbox, more=more) != before


def always(*_):
    return True


def test_an_attempt_that_failed_does_not_hide_what_was_seen():
    cell = Cell("needed", declared=True, code="c0de", present=True)
    seen = Measurement("2026-11-20", VERSIONS, {"a": cell})
    failed = Measurement("2026-11-21", VERSIONS, problem="no network")
    again = Measurement("2026-11-22", VERSIONS, problem="no wheel")
    assert seen.merged(failed, always) == seen
    assert failed.merged(seen, always) == seen
    assert failed.merged(again, always) == again
    assert again.merged(failed, always) == again


def test_what_was_measured_at_another_time_keeps_the_versions_of_that_time(tmp_path):
    old_versions = VERSIONS | {"torch": "2.5.0"}
    cell = Cell("needed", declared=True, code="c0de", present=True)
    old = Measurement("2026-11-20", old_versions, {"a": cell, "b": cell})
    new = Measurement("2026-11-21", VERSIONS, {"b": cell, "c": cell})
    merged = old.merged(new, always)
    kept = dataclasses.replace(cell, versions=old_versions)
    assert merged == Measurement("2026-11-21", VERSIONS, {"a": kept, "b": cell, "c": cell})
    assert new.merged(old, lambda *_: False) == merged
    assert [v["torch"] for v in merged.all_versions()] == ["2.5.0", "2.13.0", "2.13.0"]
    file = tmp_path / "matrix.json"
    write_whole(file, Evidence({"standin==1.0": merged}).text())
    assert Evidence.read(file).measurements == {"standin==1.0": merged}
    assert file.read_text().count('"torch": "2.5.0"') == 1
    # Measured anew, it is of the present.
    assert merged.merged(Measurement("2026-11-22", VERSIONS, {"a": cell}), always).cells["a"] == cell
