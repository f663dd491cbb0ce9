"""``put``, ``get``, ``delete``: one item, or a few."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from sync_engine.cli.command import Command, ExitCode, UsageError, add_write_options
from sync_engine.cli.context import Context
from sync_engine.cli.files import read_whole, standard_input
from sync_engine.cli.output import item_fields, size
from sync_engine.core.item import SyncItem

__all__ = ["DELETE", "GET", "PUT"]


def _put_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("file", metavar="FILE", nargs="?", help="content; - is standard input")
    parser.add_argument("--text", metavar="TEXT", help="content, as UTF-8")
    condition = parser.add_mutually_exclusive_group()
    condition.add_argument(
        "--if-version", type=int, metavar="N", help="only over this version; 0 is absent"
    )
    condition.add_argument("--if-absent", action="store_true", help="only where there is none")
    add_write_options(parser)


def _put(context: Context) -> int:
    args, output = context.args, context.output
    if (args.text is None) == (args.file is None):
        raise UsageError("put takes FILE, - or --text TEXT: one of them")
    options = context.options()
    content = _content(context)
    with context.writing() as engine, context.stop.deferred():
        receipt = engine.submit(SyncItem(args.id, content), options)
    if output.json:
        output.document(
            {
                "id": receipt.id,
                "version": receipt.version,
                "position": receipt.position,
                "bytes": len(content),
                "left": {} if context.closed is None else context.closed.left,
            }
        )
    else:
        output.report(f"{receipt.id}: {size(len(content))}, version {receipt.version}")
    return ExitCode.OK


def _content(context: Context) -> bytes:
    args, bytes_max = context.args, context.config.max_payload_bytes
    if args.text is not None:
        return os.fsencode(args.text)  # the very bytes that the shell gave us
    if args.file == "-":
        return standard_input().read(bytes_max + 1)  # one too many is refused by its name
    return read_whole(Path(args.file), bytes_max)


def _get_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there, whole or not at all")
    parser.add_argument("--verify", metavar="SHA256", help="expected SHA-256 of the content, hex")


def _get(context: Context) -> int:
    args, output = context.args, context.output
    expected = None if args.verify is None else _digest(args.verify)
    with context.reading() as engine:
        item = engine.get(args.id) if expected is None else engine.get_verified(args.id, expected)
    if item is None:
        output.error(f"{args.id}: not found")
        return ExitCode.FAILED
    if args.output is not None:
        _write_whole(Path(args.output), item.content)
        output.note(f"{args.output}: {size(len(item.content))}, version {item.version}")
    if output.json:
        output.document({**item_fields(item, content=args.output is None)})
    elif args.output is None:
        if sys.stdout.isatty() and b"\0" in item.content:
            raise UsageError(
                f"{args.id} is not text: it would disturb the terminal", "use -o FILE, or a pipe"
            )
        output.bytes(item.content)
    return ExitCode.OK


def _digest(text: str) -> str:
    digest = text.lower().removeprefix("sha256:")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError("--verify takes a SHA-256: 64 hexadecimal digits")
    return digest


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that nobody sees a part."""
    if path.exists() and not path.is_file():  # a device or a pipe has no name to take over
        path.write_bytes(content)
        return
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(
                file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask
            )
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="+")
    parser.add_argument("--ignore-missing", action="store_true", help="absent items are no failure")


def _delete(context: Context) -> int:
    output = context.output
    found: dict[str, bool] = {}
    try:
        with context.writing() as engine:
            for id in dict.fromkeys(context.args.ids):
                with context.stop.deferred():
                    found[id] = engine.delete(id)
                output.report(f"{id}: deleted" if found[id] else f"{id}: not found")
    finally:  # what was done before a failure is told, too
        if output.json and found:
            output.document({"deleted": found})
    if all(found.values()) or context.args.ignore_missing:
        return ExitCode.OK
    return ExitCode.PARTLY if any(found.values()) else ExitCode.FAILED


PUT = Command(
    name="put",
    summary="write one item",
    example="""\
sync-engine put greeting --text hello
sync-engine put logo.png ./logo.png --durability archive
date | sync-engine put now - --ttl 1h""",
    arguments=_put_arguments,
    run=_put,
)
GET = Command(
    name="get",
    summary="print the raw bytes of one item",
    details="Exit code 1 if there is no such item, 5 if its content has another SHA-256.",
    example="""\
sync-engine get greeting
sync-engine get logo.png -o logo.png""",
    arguments=_get_arguments,
    run=_get,
)
DELETE = Command(
    name="delete",
    summary="delete items in every tier",
    details="Exit code 1 if there were none of them, 3 if some were missing.",
    example="sync-engine delete greeting logo.png",
    arguments=_delete_arguments,
    run=_delete,
)
