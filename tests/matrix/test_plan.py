"""What is measured by default, and what a selection leaves of it."""

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nrl_patches import Patch
from nrl_patches.matrix.index import Release
from nrl_patches.matrix.plan import FLOORS, Selection, plan


def declaring(affected, name="a"):
    return Patch(name, affected=affected, upstream=("https://example.org/1",), opt_out="NRL_DISABLE_A")


def releases(*texts):
    found = [text.partition(" ") for text in texts]
    return [Release(Version(version), remark) for version, _, remark in found]


TEN = {"standin": releases(*(f"1.{n}" for n in range(10)))}


DEFAULT = Selection()


def planned(*patches, index=TEN, selection=DEFAULT, pin=lambda *_: None):
    return [task.environment for task in plan(patches, index, selection, pin)]


def test_the_declared_releases_two_more_on_both_sides_and_the_newest_newest_first():
    assert planned(declaring("standin>=1.3,<1.5")) == [f"standin==1.{n}" for n in (9, 6, 5, 4, 3, 2, 1)]


def test_the_windows_of_all_patches_of_a_distribution_make_one_and_each_is_measured_everywhere():
    tasks = plan([declaring("standin==1.2"), declaring("standin==1.6", "b")], TEN, Selection(), lambda *_: None)
    assert [task.environment for task in tasks] == [f"standin==1.{n}" for n in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    assert {task.patches for task in tasks} == {("a", "b")}


def test_a_margin_does_not_wrap_around_and_an_unknown_range_measures_the_newest():
    assert planned(declaring("standin<1.1"))[-1] == "standin==1.0"
    assert planned(declaring("standin>=7")) == ["standin==1.9"]


def test_pre_releases_are_left_out_unless_asked_for_and_yanked_ones_are_not():
    index = {"standin": releases("1.0", "1.1 yanked: oh", "1.2rc1 pre-release", "1.2")}
    patch = declaring("standin>=1.0,<1.3")
    assert planned(patch, index=index) == ["standin==1.2", "standin==1.1", "standin==1.0"]
    with_pre = planned(patch, index=index, selection=Selection(prereleases=True))
    assert with_pre == ["standin==1.2", "standin==1.2rc1", "standin==1.1", "standin==1.0"]


def test_nothing_below_a_floor_is_planned_unless_asked_for(monkeypatch):
    monkeypatch.setitem(FLOORS, "standin", Version("1.3"))
    patch = declaring("standin>=1.3,<1.5")
    assert planned(patch)[-1] == "standin==1.3"
    assert planned(patch, selection=Selection(SpecifierSet("==1.2"))) == ["standin==1.2"]


@pytest.mark.parametrize("affected", ["standin==1.0", "standin>=7"])
def test_the_newest_that_was_not_yanked_is_measured_too(affected):
    index = {"standin": releases(*(f"1.{n}" for n in range(8)), "1.8 yanked: oh")}
    assert planned(declaring(affected), index=index)[:2] == ["standin==1.8", "standin==1.7"]


def test_what_was_yanked_lies_in_the_margin_and_does_not_use_it_up():
    index = {
        "standin": releases("1.0", "1.1", "1.2 yanked: oh", "1.3 yanked: oh", "1.4", "1.5", "1.6 yanked: oh", "1.7")
    }
    assert planned(declaring("standin==1.4"), index=index) == [f"standin==1.{n}" for n in (7, 6, 5, 4, 3, 2, 1, 0)]


def test_a_specifier_takes_the_place_of_the_window():
    selection = Selection(SpecifierSet(">=1.7"))
    assert planned(declaring("standin==1.2"), selection=selection) == ["standin==1.9", "standin==1.8", "standin==1.7"]


INDEX = {
    "nemo-automodel": releases("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0"),
    "transformers": releases("5.7.0", "5.8.0", "5.9.0", "5.9.1", "5.10.0 yanked: oh", "5.10.1", "5.11.0", "5.12.0"),
}
PINS = {
    "0.3.0": "transformers>=5.7",
    "0.4.0": "transformers>=5.7",
    "0.5.0": "transformers==5.7.0",
    "0.6.0": "transformers>=5.9,<5.11",
    "0.7.0": "transformers==9",
}


@pytest.mark.parametrize(
    ("version", "beside"),
    [
        # Its pin, then both sides of both ends of the declared range, and the newest.
        ("0.3.0", ["5.7.0", "5.8.0", "5.9.0", "5.10.1", "5.11.0", "5.12.0"]),
        # And all that is declared, beside the oldest and the newest release that is.
        ("0.4.0", ["5.7.0", "5.8.0", "5.9.0", "5.10.1", "5.11.0", "5.12.0", "5.9.1"]),
        ("0.5.0", ["5.7.0", "5.8.0", "5.9.0", "5.10.1", "5.11.0", "5.12.0"]),
        ("0.6.0", ["5.10.1", "5.8.0", "5.9.0", "5.11.0", "5.12.0", "5.9.1"]),
        ("0.7.0", ["5.8.0", "5.9.0", "5.10.1", "5.11.0", "5.12.0"]),
    ],
)
def test_what_does_not_import_alone_is_measured_beside_its_pin_and_the_ends_of_the_declared_range(version, beside):
    found = planned(
        declaring("nemo-automodel>=0.4,<0.7 & transformers>=5.9,<5.11"),
        index=INDEX,
        selection=Selection(SpecifierSet(f"=={version}")),
        pin=lambda _, release, __: Requirement(PINS[release]),
    )
    assert found == [f"nemo-automodel=={version} & transformers=={other}" for other in beside]


def test_a_patch_of_one_distribution_is_not_measured_beside_all_of_another():
    patches = [
        declaring("nemo-automodel>=0.4,<0.7"),
        declaring("nemo-automodel>=0.4,<0.7 & transformers>=5.9,<5.11", "b"),
    ]
    tasks = plan(patches, INDEX, Selection(SpecifierSet("==0.4.0")), lambda _, release, __: Requirement(PINS[release]))
    assert {task.environment: task.patches for task in tasks}["nemo-automodel==0.4.0 & transformers==5.9.1"] == ("b",)
    assert {task.patches for task in tasks} == {("a", "b"), ("b",)}
