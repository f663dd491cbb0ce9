"""Write the reference pages that come from the code; ``--check`` tells which are not current.

Run it in an environment where sync_engine is installed: ``python docs/reference/generate.py``.
"""

# ruff: noqa: SLF001 - argparse does not tell its commands otherwise
from __future__ import annotations

import argparse
import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_overloads

import sync_engine
from sync_engine import errors
from sync_engine.config import SETTINGS, SyncEngineConfig
from sync_engine.stores.sql import migration_sql
from sync_engine.telemetry import MEANINGS
from sync_engine.telemetry.metrics import NAMESPACE

HERE = Path(__file__).parent
PACKAGE = Path(sync_engine.__file__).parent
FACES = ("sync_engine.face", "sync_engine.aio", "sync_engine.wal.writing")
NOTE = "<!-- Written by generate.py from the code: change the code, then run it. -->\n"

GROUPS: dict[str, tuple[str, list[str]]] = {
    "The engine": ("", ["SyncEngine", "Receipt", "AsyncSyncEngine", "AsyncReceipt"]),
    "Items and options": (
        "",
        ["SyncItem", "ContentType", "SubmitOptions", "Durability", "CacheTtl", "OptionsKey"],
    ),
    "Settings": ("The table of settings is in [Settings](config.md).", ["SyncEngineConfig"]),
    "Answers": (
        "",
        [
            "BatchResult", "FlushReport", "ItemStatus", "EngineState", "Health", "TierHealth",
            "BackpressureLevel", "DeadLetter", "WalStats",
        ],
    ),
    "The feed": (
        "How to use it is in [Follow the change feed](../how-to/follow-the-change-feed.md).",
        ["ArchivedChange"],
    ),
    "The Merkle tree": (
        "What it is, is in [Anti-entropy](../explanation/anti-entropy.md).",
        [
            "MerkleNode", "MerkleDiff", "MerklePage", "MerkleBatch", "PathMerkle", "VerifyReport",
            "RepairReport",
        ],
    ),
    "Policies": ("", ["BatchConfig", "RetryConfig", "CircuitConfig", "PressurePolicy"]),
    "Parts": (
        "What an engine is made of, for those who build on the parts.",
        [
            "Change", "WriteAheadLog", "HybridBatcher", "FlushBatch", "FlushReason",
            "FilterManager", "FilterTrust", "CircuitBreaker", "BackendCircuits", "LatencyTimer",
            "time_operation",
        ],
    ),
    "Ports": (
        "What stores, sinks, sources and runtimes have to do.",
        [
            "Clock", "Runtime", "Sink", "PositionedSink", "CacheStore", "ArchiveStore", "BlobStore",
            "Source", "SourceBatch", "AdapterContext",
        ],
    ),
}  # fmt: skip

FACTORIES = """
Each room needs the extra of its driver. `from_settings` is the factory that a
[pipeline file](pipeline.md) calls; its arguments after `context` are the settings in the file.
"""

MODULES: list[tuple[str, str, list[str]]] = [
    (
        "Sources and sinks",
        FACTORIES,
        [
            "sync_engine.sources.s3_listing", "sync_engine.sources.file_watch",
            "sync_engine.sources.change_stream", "sync_engine.sinks.s3_upload",
            "sync_engine.sinks.sql_table", "sync_engine.sinks.redis_stream",
            "sync_engine.sinks.snapshot",
        ],
    ),
    ("Programs", "", ["sync_engine.pipeline", "sync_engine.replication", "sync_engine.transfer"]),
    ("Objects", "", ["sync_engine.s3", "sync_engine.stores.blobs"]),
    ("Observation and tests", "", ["sync_engine.telemetry", "sync_engine.testing"]),
]  # fmt: skip

LOADING = """
`SyncEngine.open(data_dir, ...)` loads them in this way. `SyncEngineConfig(...)` takes arguments
alone, `from_env()` the environment, `from_toml(path)` one file.

In TOML, a table may stand for the words before an underscore:

```toml
[sync_engine]
data_dir = "/var/lib/app"
log_bytes_max = "4GiB"

[sync_engine.l3]
batch_items_max = 5000
timeout_s = "20s"
```
"""

READING = """
Read them as text (`render_text`), with Prometheus or with OpenTelemetry: see
[Observe](../how-to/observe.md). Names in `_seconds` are seconds, those in `_bytes` bytes. A
histogram's buckets double, from 1 µs for seconds.
"""

LIMITED = """
A *limited* event is logged once, and then at most once a minute while it repeats, with a field
`suppressed`.
"""

# -- docstrings -----------------------------------------------------------------------------------

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Source):\s*(.*)")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*): (.*)", re.DOTALL)
TITLES = {"Args": "Arguments", "Example": ""}


def markdown(doc: str | None) -> str:
    """Return a Google-style docstring as Markdown."""
    if not doc:
        return ""
    parts = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        head, _, rest = block.partition("\n")
        found = SECTION.fullmatch(head)
        if found and found[1] != "Source" and not found[2]:
            parts.append(_section(found[1], textwrap.dedent(rest)))
        elif head.startswith("    "):  # goes on with the section before
            parts.append(_entries(textwrap.dedent(block)))
        else:
            parts.append(_prose(block))
    return "\n\n".join(part for part in parts if part)


def _section(name: str, body: str) -> str:
    if name == "Example":
        return f"```pycon\n{body.rstrip()}\n```"
    title = TITLES.get(name, name)
    return (
        f"*{title}*\n\n{_entries(body)}"
        if name in {"Args", "Attributes", "Raises"}
        else (f"*{title}*: {_prose(body)}")
    )


def _entries(body: str) -> str:
    lines: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    made = []
    for line in lines:
        found = ENTRY.fullmatch(line)
        made.append(f"- `{found[1]}`: {_prose(found[2])}" if found else f"- {_prose(line)}")
    return "\n".join(made)


def _prose(text: str) -> str:
    text = " ".join(text.split())
    return text.replace("``", "`")


def summary(doc: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return _prose(inspect.cleandoc(doc or "").partition("\n\n")[0])


# -- signatures -----------------------------------------------------------------------------------


def signature(function: Any) -> list[str]:
    """Return how a function is called, as its source says it; one line an overload."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    return [_signature(one) for one in get_overloads(function) or [function]]


def _signature(function: Any) -> str:
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)  # noqa: S101 - it is a def
    arguments = node.args
    for places in (arguments.posonlyargs, arguments.args):
        if places and places[0].arg in {"self", "cls"}:
            del places[0]
            break
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    word = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{word}{node.name}({ast.unparse(arguments)}){returns}"


def fields_of(thing: type) -> list[str]:
    """Return the fields of a plain class of values, as its source says them."""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - it is a class
    return [
        ast.unparse(line)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_")
    ]


def parts(thing: type) -> list[type]:
    """Return a class and the parts of the public face that it joins, its life first."""
    faces = [one for one in thing.__mro__[1:] if one.__module__.startswith(FACES)]
    return [thing, *faces[-1:], *faces[:-1]]


def members(thing: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class and of its parts, in order."""
    seen = set()
    for part in parts(thing):
        for name, member in vars(part).items():
            if not name.startswith("_") and name not in seen and _is_member(member):
                seen.add(name)
                yield name, member


def _is_member(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)


# -- pages ----------------------------------------------------------------------------------------


def api_page() -> str:
    """Return the page of public names."""
    known = {name for _, names in GROUPS.values() for name in names}
    public = set(sync_engine.__all__) - {"__version__"}
    public -= {name for name in public if _is_error(getattr(sync_engine, name))}
    groups = dict(GROUPS)
    if public - known:
        groups["More"] = ("", sorted(public - known))
    out = [
        "# API",
        NOTE,
        "Everything here is exported from `sync_engine`. Errors: [Errors](errors.md).",
    ]
    for title, (prose, names) in groups.items():
        out += [f"## {title}", prose]
        out += [one for name in names if name in public for one in _thing(name)]
    for title, prose, modules in MODULES:
        out += [f"## {title}", prose]
        for name in modules:
            module = importlib.import_module(name)
            out += [f"### `{name}`", summary(module.__doc__), _names(module)]
    return _page(out)


def _is_error(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Exception)


def _thing(name: str) -> Iterator[str]:
    thing = getattr(sync_engine, name)
    yield f"### {name}"
    if inspect.isfunction(thing):
        yield _code(signature(thing))
        yield markdown(thing.__doc__)
        return
    yield _code(_shape(name, thing))
    yield markdown(thing.__doc__)
    for method, member in members(thing):
        yield f"#### {name}.{method}"
        function = member.fget if isinstance(member, property) else member
        lines = signature(function)
        if isinstance(member, property):
            lines = [f"{method}: {ast_returns(lines[0])}"]
        elif isinstance(member, classmethod | staticmethod):
            lines = [f"{name}.{line}" for line in lines]
        yield _code(lines)
        yield markdown(function.__doc__ if isinstance(member, property) else member.__doc__)


def ast_returns(line: str) -> str:
    """Return what follows the arrow of a signature."""
    return line.partition(" -> ")[2]


def _shape(name: str, thing: type) -> list[str]:
    if issubclass(thing, enum.Enum):
        return [f"{name}.{member.name} = {member.value!r}" for member in thing]
    if thing is not SyncEngineConfig and (fields := fields_of(thing)):
        return [f"class {name}:", *(f"    {line}" for line in fields)]
    own = next((vars(one)["__init__"] for one in parts(thing) if "__init__" in vars(one)), None)
    if inspect.isfunction(own) and own.__module__.startswith("sync_engine"):
        try:
            return [_signature(own).replace("__init__", name, 1).removesuffix(" -> None")]
        except (OSError, SyntaxError):  # made by a decorator: it has no source
            pass
    return [f"class {name}"]


def _names(module: ModuleType) -> str:
    rows = ["| name | |", "|---|---|"]
    for name in module.__all__:
        thing = getattr(module, name)
        doc = thing.__doc__ if inspect.isroutine(thing) or inspect.isclass(thing) else ""
        rows.append(f"| `{name}` | {_cell(summary(doc))} |")
    return "\n".join(rows)


def config_page() -> str:
    """Return the page of settings."""
    rows = ["| setting | variable | takes | default | meaning |", "|---|---|---|---|---|"]
    rows += [
        f"| `{one.name}` | `{one.env}` | {_cell(one.kind)} | `{one.default}`"
        f" | {_cell(one.meaning)} |"
        for one in SETTINGS
    ]
    return _page(
        [
            "# Settings",
            NOTE,
            markdown(SyncEngineConfig.__doc__).partition("*Raises*")[0],
            "Where settings come from: `SyncEngineConfig.load` "
            + markdown(SyncEngineConfig.load.__doc__)
            .partition("*Arguments*")[0]
            .replace("Collect", "collects", 1),
            LOADING,
            "\n".join(rows),
        ]
    )


def errors_page() -> str:
    """Return the page of errors."""
    out = [
        "# Errors",
        NOTE,
        "One root, split by what the caller should do. All are exported from `sync_engine`.",
        "\n".join(_tree(errors.SyncEngineError, 0)),
    ]
    for name in errors.__all__:
        thing = getattr(errors, name)
        out += [f"## {name}", markdown(thing.__doc__)]
    return _page(out)


def _tree(thing: type, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}- [`{thing.__name__}`](#{thing.__name__.lower()})"
    subclasses: list[type] = type.__subclasses__(thing)
    for below in sorted(subclasses, key=lambda one: one.__name__):
        if below.__module__ == errors.__name__:
            yield from _tree(below, depth + 1)


class Meter(NamedTuple):
    """One metric as the code names it."""

    kind: str
    labels: tuple[str, ...]


_MAKERS = {
    "counter": "counter",
    "gauge": "gauge",
    "gauge_callback": "gauge",
    "histogram": "histogram",
}
_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield module and call for every method call with a literal first argument."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.startswith("testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield module, node


def meters() -> dict[str, Meter]:
    """Return every metric that the code makes, by name."""
    found: dict[str, Meter] = {}
    for _, node in calls():
        name = node.args[0].value  # type: ignore[attr-defined]
        kind = _MAKERS.get(node.func.attr)  # type: ignore[attr-defined]
        if kind is None or not re.fullmatch(r"[a-z_0-9]+", name):
            continue
        labels = {word.arg for word in node.keywords if word.arg}
        if any(word.arg is None for word in node.keywords):  # **labels of one store operation
            labels |= {"tier", "operation"}
        found[name] = Meter(kind, tuple(sorted(labels)))
    return found


def metrics_page() -> str:
    """Return the page of metrics and log lines."""
    found = meters()
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for name in sorted({*found, *MEANINGS}):
        kind, labels = found.get(name, Meter("", ()))
        suffix = "_total" if kind == "counter" else ""
        shown = ", ".join(f"`{label}`" for label in labels)
        meaning = MEANINGS.get(name, "")
        rows.append(f"| `{NAMESPACE}_{name}{suffix}` | {kind} | {shown} | {_cell(meaning)} |")
    events: dict[str, set[str]] = {}
    for module, node in calls():
        owner = node.func.value  # type: ignore[attr-defined]
        level = {**_LEVELS, "limited": "warning, limited"}.get(node.func.attr)  # type: ignore[attr-defined]
        if isinstance(owner, ast.Name) and owner.id == "_log" and level:
            name = node.args[0].value.split()[0]  # type: ignore[attr-defined]
            fields = " ".join(
                word.arg for word in node.keywords if word.arg and word.arg != "exc_info"
            )
            fields = fields or " ".join(re.findall(r"(\w+)=%", node.args[0].value))  # type: ignore[attr-defined]
            events.setdefault(f"{name}|{level}|sync_engine.{module}", set()).add(fields)
    lines = ["| event | level | logger | fields |", "|---|---|---|---|"]
    for key in sorted(events):
        name, level, logger = key.split("|")
        fields = ", ".join(f"`{one}`" for one in " ".join(sorted(events[key])).split())
        lines.append(f"| `{name}` | {level} | `{logger}` | {fields} |")
    return _page(
        [
            "# Metrics and log lines",
            NOTE,
            "## Metrics",
            READING,
            "\n".join(rows),
            "## Log lines",
            LIMITED,
            "\n".join(lines),
        ]
    )


def cli_page() -> str:
    """Return the page of the command line."""
    from sync_engine.cli import make_parser

    parser = make_parser()
    common = {action.dest for action in parser._actions}
    out = ["# Command line", NOTE, *_help_text(parser.description), *_help_text(parser.epilog)]
    out += ["Every command has `--help`, and takes these options:", _arguments(parser, set())]
    return _page([*out, *_commands(parser, common, 2)])


def _commands(parser: argparse.ArgumentParser, common: set[str], depth: int) -> Iterator[str]:
    for action in parser._actions:  # argparse has no other way to list commands
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield f"{'#' * depth} {command.prog}"
                yield from _help_text(command.description)
                yield _arguments(command, common)
                yield from _help_text(command.epilog)
                yield from _commands(command, common, depth + 1)


def _help_text(text: str | None) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", (text or "").strip()):
        head, _, rest = block.partition("\n")
        if head.startswith("example"):
            yield _code([textwrap.dedent(rest)], "bash")
        elif head.endswith(":") and rest.startswith(" "):
            yield f"{head[:1].upper()}{head[1:]}"
            yield _code([textwrap.dedent(rest)])
        else:
            yield _prose(block)


def _arguments(parser: argparse.ArgumentParser, common: set[str]) -> str:
    rows = []
    for action in parser._actions:
        commands = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        if commands or action.dest in common:
            continue
        takes = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        if action.choices is not None:
            takes = " | ".join(map(str, action.choices))
        shown = ", ".join(action.option_strings) or takes
        default = action.default
        told = (action.help or "").replace("%%", "%")
        plain = default in (None, (), [], "", argparse.SUPPRESS) or action.nargs == 0
        rows.append(
            f"| `{_cell(shown)}` | {_cell(takes) if action.option_strings else ''}"
            f" | {'' if plain else f'`{default}`'} | {_cell(_prose(told))} |"
        )
    head = ["| argument | takes | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def ddl_block() -> str:
    """Return the statements that make the archive's tables, for each kind of database."""
    out = []
    for title, kind in (
        ("SQLite", "sqlite"),
        ("MySQL and MariaDB", "mysql"),
        ("PostgreSQL", "postgresql"),
    ):
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>", migration_sql(kind))
        out += [f"## {title}", _code([text.rstrip()], "sql")]
    return "\n\n".join(out)


def _code(lines: list[str], language: str = "text") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _page(parts: list[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "config.md": config_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "cli.md": cli_page,
}
BLOCKS: dict[tuple[str, str], Callable[[], str]] = {("sql-schema.md", "ddl"): ddl_block}


def render(here: Path = HERE) -> dict[str, str]:
    """Return every generated page by its name, as it should be."""
    made = {name: page() for name, page in PAGES.items()}
    for (name, block), text in BLOCKS.items():
        page = made.get(name) or (here / name).read_text("utf-8")
        begin, end = f"<!-- generated: {block} -->", "<!-- /generated -->"
        before, _, rest = page.partition(begin)
        made[name] = f"{before}{begin}\n\n{text()}\n\n{end}{rest.partition(end)[2]}"
    return made


def main() -> int:
    """Write the pages, or check them; return the exit code."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in render().items():
        path = HERE / name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, "utf-8")
    word = "not current" if check else "written"
    sys.stdout.write("".join(f"{word}: {name}\n" for name in stale))
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
