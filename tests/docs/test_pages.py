"""Links lead somewhere, generated pages are current, and nothing is promised that is not there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import sync_engine
from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, name_of

REFERENCE = ROOT / "docs" / "reference"
DOCUMENTED = [
    "SyncEngine",
    "SyncEngineConfig",
    "EngineState",
    "ItemStatus",
    "BatchResult",
    "MerkleDiff",
    "BackpressureLevel",
    "SyncItem",
    "ContentType",
    "CacheTtl",
    "OptionsKey",
    "SubmitOptions",
    "CacheStore",
    "ArchiveStore",
    "StorageError",
    "FilterManager",
    "FilterTrust",
    "HybridBatcher",
    "BatchConfig",
    "FlushReason",
    "FlushBatch",
    "PathMerkle",
    "MerkleBatch",
    "MerkleNode",
    "RedisMerkleStore",
    "WriteAheadLog",
    "WalStats",
    "CircuitBreaker",
    "CircuitConfig",
    "BackendCircuits",
    "RetryConfig",
    "LatencyTimer",
    "time_operation",
    "HealthCheck",
    "SizedItem",
    "BatchableItem",
    "Batch",
    "InMemoryStore",
    "MerkleCacheStore",
    "MysqlHealthChecker",
    "CircuitError",
    "CdcEntry",
    "CdcOp",
    "CdcMeta",
    "CdcFieldValue",
    "maybe_compress",
    "maybe_decompress",
    "is_zstd_compressed",
    "cdc_stream_key",
    "SearchIndex",
    "QueryBuilder",
]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            waiting += [
                (page.parent / link.partition("#")[0]).resolve()
                for link in links(page)
                if "://" not in link
            ]
    assert [name_of(page) for page in PAGES if page not in seen] == []


def test_every_test_that_a_page_names_exists() -> None:
    for page in PAGES:
        for name, path in re.findall(r"\[`(test_\w+)`\]\(([^)]+\.py)\)", page.read_text("utf-8")):
            source = (page.parent / path).resolve().read_text("utf-8")
            assert f"def {name}(" in source, f"{name_of(page)} names {name}, which is not in {path}"


def test_generated_pages_are_current(generate: ModuleType) -> None:
    """Run ``python docs/reference/generate.py`` after a change of the code."""
    for name, text in generate.render().items():
        assert (REFERENCE / name).read_text("utf-8") == text, f"{name} is not current"


def test_every_metric_has_a_meaning(generate: ModuleType) -> None:
    from sync_engine.telemetry import MEANINGS

    assert set(generate.meters()) == set(MEANINGS)


def test_every_documented_name_has_its_counterpart_or_a_reason() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \|$",
        (REFERENCE / "parity.md").read_text("utf-8"),
        re.MULTILINE,
    )

    assert [name for name, _, _ in rows] == DOCUMENTED
    for name, ours, _ in rows:
        if ours == "not needed":
            assert not hasattr(sync_engine, name), f"{name} is there: say so"
        else:
            module, _, attribute = ours.strip("`").rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), ours


def test_every_method_that_a_page_names_exists() -> None:
    for page in PAGES:
        for owner, name in re.findall(
            r"`(SyncEngine|AsyncSyncEngine)\.(\w+)", page.read_text("utf-8")
        ):
            assert hasattr(getattr(sync_engine, owner), name), f"{name_of(page)}: {owner}.{name}"


def test_the_readme_opens_with_the_two_commands_that_work_in_a_fresh_clone() -> None:
    readme = ROOT / "README.md"
    assert [block.text for block in blocks(readme, "bash")] == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/sync-engine quickstart\n",
        ".venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest\n",
    ]


def test_the_index_links_every_page_once() -> None:
    index = ROOT / "docs" / "index.md"
    targets = [(index.parent / link.partition("#")[0]).resolve() for link in links(index)]
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index]

    assert sorted(target for target in targets if target in pages) == pages


def test_decisions_are_numbered_one_by_one_and_say_their_number() -> None:
    records = sorted((ROOT / "docs" / "explanation" / "decisions").glob("*.md"))

    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert record.read_text("utf-8").startswith(f"# {int(record.name[:4])}. "), record.name


def test_every_room_is_in_the_table_of_the_architecture() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    package = ROOT / "sync_engine"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}

    first_cells = " ".join(re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE))
    assert [room for room in sorted(rooms) if f"`{room}`" not in first_cells] == []


def test_every_type_of_source_and_sink_is_in_the_reference_of_pipelines() -> None:
    from sync_engine.adapters import BUILT_IN

    text = (REFERENCE / "pipeline.md").read_text("utf-8")
    for kind, types in BUILT_IN.items():
        for name in types:
            assert f"| `{name}` | {kind} |" in text, f"{kind} {name}"
