"""Packed rows that `seq_idx` tells of: only kernels that take it are relied on."""

from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).with_name("packed_kernels.py")

ROUNDING = 1e-4

MIXERS = {"Bamba": 1, "FalconH1": 2, "GraniteMoeHybrid": 1, "NemotronH": 1, "Zamba2": 3, "Lfm2": 1, "Jamba": 1}
"""How many of them the tiny models have."""


@pytest.mark.parametrize("release", ["5.14.1", "5.15.0", "5.24.0"])
def test_packed_sequences_stay_apart_whoever_takes_seq_idx(release):
    found = results(run_on(f"transformers=={release}", SCRIPT, *MIXERS))
    assert all(way["gap"] < ROUNDING for family in found.values() for way in family.values())
    assert not any(family["positions"]["convolution"] for family in found.values())
    convolutions = {family: found[family]["seq_idx too"]["convolution"] for family in MIXERS}
    # Up to 5.14.1 most mixers have it among their keywords, and drop it. Jamba's scan knows nothing of it to this day,
    # and Falcon-H1 up to 5.16.1 does not hand it to its layers.
    none = {"5.14.1": set(MIXERS), "5.15.0": {"Jamba", "FalconH1"}, "5.24.0": {"Jamba"}}[release]
    assert convolutions == {family: 0 if family in none else mixers for family, mixers in MIXERS.items()}
    scans = {family: found[family]["seq_idx too"]["scan"] for family in MIXERS if family != "Lfm2"}
    assert scans == {family: convolutions[family] for family in scans}
