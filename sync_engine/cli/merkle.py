"""``merkle``: the archive's Merkle tree: root, nodes, and a comparison with another archive."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sync_engine.cli.command import Command, ExitCode, UsageError, words
from sync_engine.cli.context import Context
from sync_engine.cli.output import count, duration, shown
from sync_engine.core.item import Change
from sync_engine.core.merkle import (
    Divergence,
    MerkleEntry,
    MerkleMirrored,
    MerkleNode,
    MerklePage,
)

__all__ = ["MERKLE", "OtherArchive", "other_archive", "other_argument"]


class OtherArchive:
    """An archive by its URL, as the other side of a comparison or repair."""

    def __init__(self, archive: Any) -> None:
        self._archive = archive

    def merkle_root(self) -> MerkleNode:
        """Return the root."""
        node: MerkleNode = self._archive.merkle.merkle_root()
        return node

    def merkle_node(self, path: str) -> MerkleNode:
        """Return a node."""
        node: MerkleNode = self._archive.merkle.merkle_node(path)
        return node

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children."""
        page: MerklePage = self._archive.merkle.merkle_children(path, after, limit, grouped=grouped)
        return page

    def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """Return changes."""
        changes: Mapping[str, Change] = self._archive.get_many(ids)
        return changes


@contextmanager
def other_archive(context: Context, url: str) -> Iterator[OtherArchive]:
    """Open another archive; creates nothing there.

    Raises:
        ConfigError: It cannot be used, or there is none.
        StoreUnavailable: It is not there now.
    """
    from sync_engine.stores.sql import open_archive

    config = context.config
    archive = open_archive(
        url,
        clock=context.clock,
        create_schema=False,
        merkle_separator=config.merkle_separator,
        connect_timeout_s=config.l3_connect_timeout_s,
        timeout_s=config.l3_timeout_s,
    )
    try:
        yield OtherArchive(archive)
    finally:
        archive.close()


def other_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the URL of another archive."""
    parser.add_argument("other", metavar="URL", help="where the other archive is", **more)


def _numbers(node: MerkleNode) -> dict[str, object]:
    total = node.total
    return {"hash": node.hash, "live": total.live, "tombstones": total.dead}


def _from_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        choices=("archive", "redis"),
        default="archive",
        help="redis: the mirror, as of the position it names, even while the archive is down",
    )


def _mirrored(context: Context, path: str) -> tuple[MerkleMirrored, dict[str, object]]:
    """Return what the mirror has of a path, and what tells how old that is."""
    with context.reading() as engine:
        found = engine.merkle_mirrored(path)
    age_s = max(0.0, (context.clock.now_ms() - found.seen_at_ms) / 1000)
    told: dict[str, object] = {"source": "mirror", "position": found.position}
    if context.output.json:
        return found, told | {"behind": found.behind, "age_s": age_s}
    behind = "unknown: the archive does not answer"
    if found.behind is not None:
        behind = count(found.behind, "batch", "batches")
    return found, told | {"behind": behind, "seen": f"{duration(age_s)} ago"}


def _root(context: Context) -> int:
    output = context.output
    if context.args.source == "redis":
        found, told = _mirrored(context, "")
        if output.json:
            output.document(_numbers(found.node) | told)
        else:
            output.fields("root in the mirror", _numbers(found.node) | told)
        return ExitCode.OK
    with context.reading() as engine:
        root, state = engine.merkle_root(), engine.merkle_state()
    answer = _numbers(root) | {"position": state.position, "separator": state.separator}
    if output.json:
        output.document(answer)
    else:
        output.fields("root of the archive", answer)
    return ExitCode.OK


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="", type=words, help="default: the root"
    )
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="children at most")
    parser.add_argument("--after", type=words, metavar="TOKEN", help="`next` of the page before")
    _from_argument(parser)


def _show(context: Context) -> int:
    args, output = context.args, context.output
    told: dict[str, object] = {}
    if args.source == "redis":
        if args.after is not None:
            raise UsageError("--after: the mirror has first children only", "--from archive")
        found, told = _mirrored(context, args.path)
        node, page = found.node, found.page
        kept = page.nodes[: max(0, args.limit)]
        more = page.next if len(kept) == len(page.nodes) else page.nodes[len(kept)].path
        page = MerklePage(kept, more)
    else:
        with context.reading() as engine:
            node = engine.merkle_node(args.path)
            page = engine.merkle_children(args.path, args.after, args.limit)
    if not node.total.count:
        output.error(f"nothing is stored under {shown(args.path)!r}")
        return ExitCode.FAILED
    children = [
        {"path": child.path, "item": child.entry is not None, **_numbers(child)}
        for child in page.nodes
    ]
    if output.json:
        own = {"path": node.path, "entry": _entry(node.entry), **_numbers(node)}
        output.document(own | told | {"children": children, "next": page.next})
        return ExitCode.OK
    output.fields(shown(args.path) or "root", _numbers(node) | told)
    rows = [
        (
            shown(child.path),
            "item" if child.entry is not None else "",
            f"{child.total.live:,}",
            f"{child.total.dead:,}",
            child.hash,
        )
        for child in page.nodes
    ]
    output.table("children", ("path", "", "live", "dead", "hash"), rows, right=(2, 3))
    if page.next is not None:
        source = "--from archive " if told else ""
        output.note(f"there are more: {source}--after {shown(page.next)!r}")
    return ExitCode.OK


def _entry(entry: MerkleEntry | None) -> dict[str, object] | None:
    if entry is None:
        return None
    return {"version": entry.version, "deleted": entry.deleted, "hash": entry.hash.hex()}


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    other_argument(parser)
    parser.add_argument(
        "--path", default="", type=words, metavar="PATH", help="only what is below it"
    )
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="differences at most")
    parser.add_argument(
        "--live", action="store_true", help="leave tombstones out: one side may have purged them"
    )


def _diff(context: Context) -> int:
    args, output = context.args, context.output
    if args.limit < 1:
        raise UsageError(f"--limit: must be 1 or more, got {args.limit}")
    with context.reading() as engine, other_archive(context, args.other) as other:
        found = engine.diff(other, path=args.path, limit=args.limit, tombstones=not args.live)
    for one in found.divergent:
        if output.json:
            output.line({"id": one.id, "mine": _entry(one.mine), "theirs": _entry(one.theirs)})
        else:
            output.text(f"{_verdict(one):<12}  {shown(one.id)}")
    if not found:
        output.report("they are equal", "green")
    elif found.truncated:
        output.warn(f"there are more than {count(args.limit, 'difference')}: see --limit")
    else:
        output.report(count(len(found.divergent), "difference"))
    return ExitCode.FAILED if found else ExitCode.OK


def _verdict(one: Divergence) -> str:
    if one.theirs is None:
        return "only here"
    if one.mine is None:
        return "only there"
    if one.mine.version == one.theirs.version:
        return "altered"
    return "newer here" if one.mine.version > one.theirs.version else "newer there"


def _build(context: Context) -> int:
    output = context.output
    with context.delivering() as engine:
        with output.progress("building the tree") as advance:
            done = 0

            def step(items: int) -> None:
                nonlocal done
                advance(items - done)
                done = items

            engine.merkle_rebuild(step)
        root = engine.merkle_root()
    if output.json:
        output.document(_numbers(root))
    else:
        output.report(f"the tree is built: {count(root.total.count, 'entry', 'entries')}")
    return ExitCode.OK


MERKLE = Command(
    name="merkle",
    summary="show and compare the archive's Merkle tree",
    details="Equal archives have equal roots. What waits in the log is not in the tree yet.",
    example="""\
sync-engine merkle root
sync-engine merkle diff mysql://app@elsewhere/items""",
    children=(
        Command(
            name="root",
            summary="print the root: equal archives have equal hashes",
            details="--from redis needs the setting merkle_mirror; it tells how far behind it is.",
            example="sync-engine merkle root --json",
            arguments=_from_argument,
            run=_root,
        ),
        Command(
            name="show",
            summary="print a node and its children",
            example="sync-engine merkle show uk.nhs --limit 20",
            arguments=_show_arguments,
            run=_show,
        ),
        Command(
            name="diff",
            summary="compare with another archive; lists the ids that differ",
            details="Exit code 1 if anything differs.",
            example="sync-engine merkle diff sqlite:////backup/archive.db --path uk.nhs",
            arguments=_diff_arguments,
            run=_diff,
        ),
        Command(
            name="build",
            summary="throw the tree away and build it from the rows",
            details="Engines go on writing meanwhile. Interrupted, the next engine goes on.",
            example="sync-engine merkle build",
            run=_build,
        ),
    ),
)
