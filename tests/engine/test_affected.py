import pytest
from packaging.version import Version

from nrl_patches.engine.affected import Affected, Answer, is_release
from nrl_patches.engine.distributions import Installed


def decide(declaration, **installed):
    found = {name.replace("_", "-"): Installed(name, v and Version(v)) for name, v in installed.items()}
    return Affected(declaration).decide(found.get).answer


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("5.4.0", Answer.NO),
        ("5.5.0", Answer.YES),
        ("5.5.1", Answer.YES),
        ("5.5.2", Answer.NO),
        # As strings, "5.23.0" < "5.5.2".
        ("5.23.0", Answer.NO),
        # A post-release is a release, and so is a build with a local label that names no commit.
        ("5.5.1.post2", Answer.YES),
        ("5.5.1+cu128", Answer.YES),
        ("5.5.2+cpu", Answer.NO),
        # These may be any commit: the guard decides.
        ("5.5.2.dev0", Answer.UNDECIDED),
        ("5.6.0.dev0", Answer.UNDECIDED),
        ("5.5.2rc1", Answer.UNDECIDED),
        ("5.5.0rc0+6de0c361", Answer.UNDECIDED),
        ("5.5.0+6de0c361", Answer.UNDECIDED),
        ("5.5.0+g6de0c361a", Answer.UNDECIDED),
        (None, Answer.UNDECIDED),
    ],
)
def test_range(version, answer):
    assert decide("transformers>=5.5.0,<5.5.2", transformers=version) is answer


def test_not_installed():
    assert decide("transformers>=5") is Answer.NOT_INSTALLED


def test_hole_and_alternatives_say_the_same():
    # The deepseek_v3 tokenizer's defect: present in 5.10.2, gone in 5.10.4, back in 5.11.0.
    hole = "transformers>=5.10.2,<5.12,!=5.10.4"
    alternatives = ["transformers==5.10.2", "transformers>=5.11,<5.12"]
    for version, answer in (("5.10.2", Answer.YES), ("5.10.4", Answer.NO), ("5.11.0", Answer.YES)):
        assert decide(hole, transformers=version) is answer
        assert decide(alternatives, transformers=version) is answer


@pytest.mark.parametrize(
    ("automodel", "transformers", "answer"),
    [
        ("0.4.0", "5.4.0", Answer.YES),
        ("0.4.0", "5.6.0", Answer.NO),
        ("0.5.0", "5.4.0", Answer.NO),
        ("0.6.0", "5.12.1", Answer.YES),
        ("0.5.0rc0", "5.4.0", Answer.UNDECIDED),
        ("0.5.0rc0", "5.8.1", Answer.NO),
    ],
)
def test_conjunctions_of_two_distributions(automodel, transformers, answer):
    declaration = (
        "nemo-automodel>=0.3,<0.5 & transformers>=5.4,<5.6",
        "nemo-automodel==0.6.0 & transformers>=5.9,<5.13",
    )
    assert decide(declaration, nemo_automodel=automodel, transformers=transformers) is answer


def test_a_conjunction_with_one_missing_is_not_installed_and_an_excluded_one_is_not_affected():
    assert decide("nemo-automodel<1 & transformers<6", transformers="5.5.0") is Answer.NOT_INSTALLED
    assert decide("nemo-automodel<1 & transformers<5", transformers="5.5.0") is Answer.NO


def test_the_reason_names_version_and_range():
    found = {"transformers": Installed("transformers", Version("5.5.0"))}
    assert Affected("transformers>=5.5,<5.5.2").decide(found.get).reason == (
        "transformers 5.5.0 is in transformers>=5.5,<5.5.2"
    )


@pytest.mark.parametrize(
    "declaration",
    [
        "",
        (),
        "transformers",
        "transformers 5.5",
        "transformers>=5;python_version>'3'",
        "transformers[x]>=5",
        ["a>1", ""],
    ],
)
def test_malformed_declarations(declaration):
    with pytest.raises(ValueError, match=r"needs|requirement|nothing else"):
        Affected(declaration)


def test_releases():
    assert is_release(Version("2.13.0+cpu"))
    assert not is_release(Version("2.9.0a0+145a3a7bda.nv25.10"))


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("5.8.0", Answer.NO),
        ("5.24.0", Answer.YES),
        ("5.24.0+cpu", Answer.YES),
        ("5.24.0.dev0", Answer.UNDECIDED),
        # Nobody knows: neither whether the defect is there, nor whether it is gone.
        ("5.24.1", Answer.UNMEASURED),
        ("5.24.0.post1", Answer.UNMEASURED),
        ("5.25.0.dev0", Answer.UNMEASURED),
        ("6.0.0", Answer.UNMEASURED),
        (None, Answer.UNDECIDED),
    ],
)
def test_a_range_that_ends_with_what_has_the_defect_ends_with_what_is_known(version, answer):
    assert decide("transformers>=5.9.0,<=5.24.0", transformers=version) is answer


def test_it_is_the_last_range_of_a_distribution_that_says_how_its_knowledge_ends():
    ended = ("transformers>=5.4.0,<=5.5.4", "transformers>=5.9.0,<5.13.0")
    assert decide(ended, transformers="5.6.0") is Answer.NO
    assert decide(ended, transformers="5.24.0") is Answer.NO
    open_ended = ("transformers>=5.4.0,<5.6.0", "transformers>=5.9.0,<=5.24.0")
    assert decide(open_ended, transformers="5.6.0") is Answer.NO
    assert decide(open_ended, transformers="5.25.0") is Answer.UNMEASURED
    assert Affected(open_ended).spelled_out().endswith("<=5.24.0 (the newest measured, not fixed)")


def test_what_excludes_a_pair_outweighs_what_nobody_knows():
    pair = "nemo-automodel>=0.3.0,<0.7.0 & transformers>=5.9.0,<=5.24.0"
    assert decide(pair, nemo_automodel="0.7.0", transformers="5.25.0") is Answer.NO
    assert decide(pair, nemo_automodel="0.6.0", transformers="5.25.0") is Answer.UNMEASURED
    assert decide(pair, transformers="5.25.0") is Answer.NOT_INSTALLED


def test_what_is_older_than_the_oldest_measured_release_is_not_known_either():
    assert decide("vllm>=0.6.3,<0.9.1", vllm="0.6.2") is Answer.UNMEASURED
    assert decide("vllm>=0.9.1,<=0.33.0", vllm="0.6.2") is Answer.NO
