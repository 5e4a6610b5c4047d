"""Tensors on GPUs that one side does not know, or does not see: as without the patch, and not in silence."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

ENVIRONMENT = "torch==2.13.0"
SIDES = ("neither", "sender", "receiver", "both")
HOME = {"BA": 1, "A": 0}
"""Which index the tensor's GPU has at a receiver that sees it."""

pytestmark = pytest.mark.xdist_group(ENVIRONMENT)


@functools.cache
def found():
    return results(run_on(ENVIRONMENT, Path(__file__).parent / "cuda_ipc.py"))


def case(name):
    return found()["cases"][name]


def returned(name):
    """What a case returns, of which nothing was said."""
    outcome = case(name)
    assert outcome["says"] == []
    return outcome["returns"]


def test_it_is_applied():
    assert found()["state"] == "applied"


@pytest.mark.parametrize("receiver", ["BA", "B", "A", "C", "none"])
@pytest.mark.parametrize("side", SIDES[:3])
def test_on_one_side_it_changes_nothing(side, receiver):
    assert returned(f"{side}: to {receiver}") == returned(f"neither: to {receiver}") == [0]


@pytest.mark.parametrize("receiver", HOME)
def test_on_both_sides_the_index_is_the_receivers(receiver):
    assert returned(f"both: to {receiver}") == [HOME[receiver]]


@pytest.mark.parametrize("receiver", ["B", "C"])
def test_where_the_gpu_is_not_visible_the_index_stays_and_is_said(receiver):
    outcome = case(f"both: to {receiver}")
    assert outcome["returns"] == [0]
    (said,) = outcome["says"]
    assert said.startswith("torch.cuda_ipc_device_index: expected GPU A, on which a tensor was sent")
    assert f"the tensor says cuda:0 as at its sender, which is GPU {receiver} here" in said


def test_that_is_said_once_of_each_gpu():
    outcome = case("not visible")
    assert outcome["returns"] == [0, 0, 1]
    assert len(outcome["says"]) == 2
    assert "which is no GPU here" in outcome["says"][1]
    outcome = case("partly visible")
    assert outcome["returns"] == [0, 0, 0]
    assert len(outcome["says"]) == 1


def test_a_receiver_without_gpus_is_left_to_torch():
    assert returned("both: to none") == [0]


def test_a_pickle_names_nothing_of_this_package():
    assert returned("names") == ["builtins", "torch"]


@pytest.mark.parametrize("name", ["one UUID for all", "without UUIDs", "in a fork"])
def test_where_uuids_do_not_tell_the_index_stays(name):
    assert returned(name) == [0]


def test_a_uuid_that_two_gpus_have_is_said():
    outcome = case("one UUID for all at the receiver")
    assert outcome["returns"] == [0]
    assert "found B, A, A;" in outcome["says"][0]


def test_below_a_peers_replacement_that_sends_uuids_itself():
    assert returned("under a peer's") == [1]


def test_a_tensor_of_the_cpu_is_sent_without_a_look_at_gpus():
    assert returned("of the CPU") is True


def test_torchs_function_still_unpickles_what_it_did():
    assert returned("old pickles") is True


def test_a_build_without_cuda_raises_what_it_raised():
    without, with_it = case("without CUDA: neither"), case("without CUDA: both")
    assert with_it == without
    assert "Torch not compiled with CUDA enabled" in without["raises"]
