"""Many keys: memory, speed and ranges, each measured in a process of its own.

LISTING_KEYS=1000000 gives the full length; ``pytest -m long`` runs it so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.listing import passes, ranges

KEYS = int(os.environ.get("LISTING_KEYS", "20000"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return passes(KEYS, tmp_path_factory.mktemp("listing"))


def test_a_thousand_changes_are_found_and_no_others(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["first pass"]["told"] == {"added": KEYS}
    assert measured["nothing changed"]["told"] == {}
    assert measured["1,000 changes"]["exactly those"]


def test_s02_memory_is_bounded_also_where_all_is_gone(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["all deleted"]["told"] == {"deleted": measured["1,000 changes"]["listed"]}
    for name in ("first pass", "nothing changed", "1,000 changes", "all deleted"):
        assert measured[name]["growth_mib"] <= 64, name


def test_s03_a_scan_costs_a_quarter_of_a_stock_listing(measured: dict[str, dict[str, Any]]) -> None:
    stock = measured["boto3 paginator"]["cpu_s"]
    assert measured["1,000 changes"]["cpu_s"] <= 0.25 * stock
    assert measured["nothing changed"]["cpu_s"] <= 15e-6 * KEYS + 0.5


def test_s04_ranges_beat_the_distance(tmp_path: Path) -> None:
    """A page takes a round trip: eight ranges at a time take a fraction of it."""
    found = ranges(max(KEYS, 40_000), 50.0, tmp_path)

    serial, parallel = found["50 ms away, 1 at a time"], found["50 ms away, 8 at a time"]
    assert serial["told"] == parallel["told"] == {}
    assert serial["listed"] == parallel["listed"]
    assert serial["wall_s"] >= 2.5 * parallel["wall_s"]


@pytest.mark.long
def test_a_million_keys(tmp_path: Path) -> None:
    found = passes(1_000_000, tmp_path)

    assert found["1,000 changes"]["exactly those"]
    assert found["1,000 changes"]["cpu_s"] <= 0.25 * found["boto3 paginator"]["cpu_s"]
    assert all(each["growth_mib"] <= 64 for each in found.values())
