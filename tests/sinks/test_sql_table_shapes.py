"""Tables that refer to each other, have unique columns, or are written by the user's statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from sync_engine.core.item import Change, SyncItem
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, RawTable, SqlTableSink, Table

LOG = "log-1"
PARENTS = Table(
    name="parents",
    key="p.{id}",
    columns=(Column("id", "integer", "key"), Column("name", "text(64)", "json.name")),
    unique=(("name",),),
)
CHILDREN = Table(
    name="children",
    key="c.{id}",
    columns=(Column("id", "integer", "key"), Column("parent", "integer", "json.p")),
    references={"parent": "parents.id"},
)


def parent(number: int, version: int, name: str) -> Change:
    return Change(f"p.{number}", version, b'{"name":"%s"}' % name.encode())


def child(number: int, version: int, of: int) -> Change:
    return Change(f"c.{number}", version, b'{"p":%d}' % of)


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        done = connection.execute(sa.text(text))
        return [tuple(row) for row in done] if done.returns_rows else []


@pytest.fixture
def make(request: pytest.FixtureRequest, any_sql_url: str) -> Callable[..., SqlTableSink]:
    def made(*tables: Table | RawTable, **settings: Any) -> SqlTableSink:
        sink = SqlTableSink(any_sql_url, tables, clock=SystemClock(), **settings)
        request.addfinalizer(sink.close)
        return sink

    return made


def parents(url: str) -> dict[int, str]:
    return dict(query(url, "SELECT id, name FROM parents"))


def children(url: str) -> dict[int, int]:
    return dict(query(url, "SELECT id, parent FROM children"))


def test_unique_values_of_rows_that_others_refer_to_are_swapped(
    any_sql_url: str, make: Any
) -> None:
    sink = make(PARENTS, CHILDREN)
    sink.apply_at([parent(1, 1, "a"), parent(2, 2, "b"), child(1, 3, 1), child(2, 4, 2)], LOG, 4)
    sink.apply_at([parent(1, 5, "b"), parent(2, 6, "a")], LOG, 6)
    assert parents(any_sql_url) == {1: "b", 2: "a"}
    assert children(any_sql_url) == {1: 1, 2: 2}

    sink.apply_at([Change("c.1", 7, None), Change("p.1", 8, None), parent(3, 9, "b")], LOG, 9)
    assert parents(any_sql_url) == {3: "b", 2: "a"}


def test_a_taken_unique_value_is_refused_and_its_owner_is_left_alone(
    any_sql_url: str, make: Any
) -> None:
    """MySQL would overwrite the row that has the value."""
    sink = make(PARENTS)
    sink.apply_at([parent(1, 1, "a"), parent(2, 2, "b")], LOG, 2)
    for changes in (
        [parent(3, 3, "a")],
        [parent(2, 4, "a")],
        [parent(4, 5, "c"), parent(5, 6, "b")],
    ):
        with pytest.raises(StoreRejected):
            sink.apply_at(changes, LOG, 9)
    assert parents(any_sql_url) == {1: "a", 2: "b"}
    assert sink.position(LOG) == 2


def test_a_copy_by_id_waits_for_parents_and_for_children(any_sql_url: str, make: Any) -> None:
    """Children sort before their parents, and a parent's deletion before nothing at all."""
    sink = make(PARENTS, CHILDREN)
    sink.apply([child(n, n, n % 10 if n < 90 else 77) for n in range(100)])
    assert children(any_sql_url) == {}
    assert parents(any_sql_url) == {}
    sink.apply([parent(n, 100 + n, f"n{n}") for n in range(10)])
    sink.apply_at([], LOG, 200)
    assert children(any_sql_url) == {n: n % 10 for n in range(90)}
    (standing,) = sink.standing()
    assert standing.waiting == 10

    sink.apply_at([parent(77, 300, "late")], LOG, 201)
    assert len(children(any_sql_url)) == 100
    assert sink.standing()[0].waiting == 0


def test_what_waits_gives_way_to_what_came_since(any_sql_url: str, make: Any) -> None:
    sink = make(PARENTS, CHILDREN)
    sink.apply([child(1, 1, 1), child(2, 2, 1), child(3, 3, 1)])
    sink.close()
    sink = make(PARENTS, CHILDREN)
    sink.apply([parent(1, 4, "a"), parent(2, 5, "b"), child(1, 6, 2), Change("c.2", 7, None)])
    sink.apply_at([], LOG, 7)
    assert children(any_sql_url) == {1: 2, 3: 1}


def test_a_copy_refuses_what_no_waiting_could_mend(any_sql_url: str, make: Any) -> None:
    columns = (*CHILDREN.columns, Column("word", "text(4)", "json.word"))
    table = Table(
        name="children",
        key="c.{id}",
        columns=columns,
        references=CHILDREN.references,
        unique=(("word",),),
    )
    sink = make(PARENTS, table)
    sink.apply([parent(1, 1, "a"), Change("c.1", 2, b'{"p":1,"word":"x"}')])
    with pytest.raises(StoreRejected):
        sink.apply([Change("c.2", 3, b'{"p":1,"word":"x"}')])
    sink.apply_at([], LOG, 3)
    assert sink.standing()[0].waiting == 0
    assert children(any_sql_url) == {1: 1}


def test_a_second_copy_deletes_parents_whose_children_go_later(any_sql_url: str, make: Any) -> None:
    late = Table(
        name="late", key="z.{id}", columns=CHILDREN.columns, references={"parent": "parents.id"}
    )
    sink = make(PARENTS, late)
    rows = [Change(f"z.{n}", n + 10, b'{"p":1}') for n in range(5)]
    sink.apply_at([parent(1, 1, "a"), *rows], LOG, 20)

    sink.apply([Change("p.1", 30, None)])
    sink.apply([Change(f"z.{n}", 31, None) for n in range(5)])
    sink.apply_at([], "log-2", 31)
    assert parents(any_sql_url) == {}
    assert query(any_sql_url, "SELECT id FROM late") == []


def test_a_reference_to_no_table_before_it_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"parents\.id"):
        make(CHILDREN, PARENTS)


def test_drift_of_rows_that_refer_to_each_other_is_mended(any_sql_url: str, make: Any) -> None:
    sink = make(PARENTS, CHILDREN)
    changes = [parent(1, 1, "a"), parent(2, 2, "b"), child(1, 3, 1), child(2, 4, 2)]
    sink.apply_at(changes, LOG, 4)
    items = {c.id: SyncItem(c.id, c.content or b"", version=c.version) for c in changes}
    query(any_sql_url, "UPDATE parents SET name = 'x' WHERE id = 1")
    query(any_sql_url, "DELETE FROM children WHERE id = 2")
    query(any_sql_url, "DELETE FROM parents WHERE id = 2")
    query(any_sql_url, "INSERT INTO parents (id, name, _version) VALUES (9, 'y', 1)")
    query(any_sql_url, "INSERT INTO children (id, parent, _version) VALUES (9, 9, 1)")
    found = sink.verify(items.values)
    assert len(found.drift) == 5
    assert sink.repair(found, items.get, items.values) == 5
    assert sink.verify(items.values).clean


def test_a_repair_brings_nothing_back_that_was_deleted_meanwhile(
    any_sql_url: str, make: Any
) -> None:
    sink = make(PARENTS)
    sink.apply_at([parent(1, 1, "a")], LOG, 1)
    item = SyncItem("p.1", b'{"name":"a"}', version=1)
    query(any_sql_url, "DELETE FROM parents")
    found = sink.verify(lambda: [item])

    sink.apply_at([Change("p.1", 2, None)], LOG, 2)
    assert sink.repair(found, lambda _: item) == 0
    assert parents(any_sql_url) == {}


# -- statements of the user's own ------------------------------------------------------------------


def parameters(id: str, item: SyncItem) -> Mapping[str, Any]:
    return {"k": id, "v": item.content.decode()}


def raw(url: str, **settings: Any) -> RawTable:
    upsert = "INSERT INTO raw (k, v) VALUES (:k, :v) "
    upsert += (
        "ON DUPLICATE KEY UPDATE v = :v" if "mysql" in url or "mariadb" in url
        else "ON CONFLICT (k) DO UPDATE SET v = :v"
    )  # fmt: skip
    column = "v VARCHAR(64) UNIQUE" if settings.get("swaps") else "v VARCHAR(64)"
    return RawTable(
        name="raw",
        prefix="r.",
        create=(f"CREATE TABLE IF NOT EXISTS raw (k VARCHAR(64) PRIMARY KEY, {column})",),
        upsert=upsert,
        remove="DELETE FROM raw WHERE k = :k",
        parameters=parameters,
        key_parameters=lambda id: {"k": id},
        **settings,
    )


def test_raw_rows_swap_unique_values_where_that_was_asked_for(any_sql_url: str, make: Any) -> None:
    sink = make(raw(any_sql_url, swaps=True))
    sink.apply_at([Change("r.1", 1, b"a"), Change("r.2", 2, b"b")], LOG, 2)
    sink.apply_at([Change("r.1", 3, b"b"), Change("r.2", 4, b"a")], LOG, 4)
    assert sorted(query(any_sql_url, "SELECT k, v FROM raw")) == [("r.1", "b"), ("r.2", "a")]


@pytest.mark.parametrize("select", ["", "SELECT k, v FROM raw"])
def test_drift_of_a_raw_table_is_found_and_mended(select: str, any_sql_url: str, make: Any) -> None:
    sink = make(raw(any_sql_url, select=select))
    items = {f"r.{n}": SyncItem(f"r.{n}", b"%d" % n, version=n + 1) for n in range(50)}
    sink.apply_at([Change(i.id, i.version, i.content) for i in items.values()], LOG, 50)
    assert sink.verify(items.values).clean

    del items["r.7"]
    items["r.8"] = SyncItem("r.8", b"new", version=99)
    items["r.50"] = SyncItem("r.50", b"50", version=100)
    found = sink.verify(items.values)
    assert sorted(one.kind for one in found.drift) == ["different", "extra", "missing"]
    assert sink.repair(found, items.get, items.values) == 3
    assert sink.verify(items.values).clean
    assert dict(query(any_sql_url, "SELECT k, v FROM raw")) == {
        i.id: i.content.decode() for i in items.values()
    }


def test_with_select_a_changed_row_is_found(any_sql_url: str, make: Any) -> None:
    sink = make(raw(any_sql_url, select="SELECT k, v FROM raw"))
    item = SyncItem("r.1", b"1", version=1)
    sink.apply_at([Change("r.1", 1, b"1")], LOG, 1)
    query(any_sql_url, "UPDATE raw SET v = 'x'")
    found = sink.verify(lambda: [item])
    assert [one.kind for one in found.drift] == ["different"]
    assert sink.repair(found, {"r.1": item}.get, lambda: [item]) == 1
    assert query(any_sql_url, "SELECT k, v FROM raw") == [("r.1", "1")]


def test_a_raw_table_with_rows_in_it_is_followed_into(any_sql_url: str, make: Any) -> None:
    query(any_sql_url, "CREATE TABLE raw (k VARCHAR(64) PRIMARY KEY, v VARCHAR(64))")
    query(any_sql_url, "INSERT INTO raw VALUES ('mine', 'kept'), ('r.1', 'old')")
    table = raw(any_sql_url)
    more = "CREATE TABLE IF NOT EXISTS beside (k VARCHAR(64) PRIMARY KEY)"
    table = RawTable(**{
        **{name: getattr(table, name) for name in table.__dataclass_fields__},
        "create": (*table.create, more),
    })  # fmt: skip
    sink = make(table)
    assert sink.position(LOG) is None
    sink.apply([Change("r.1", 1, b"new")])
    sink.apply_at([], LOG, 1)
    assert sorted(query(any_sql_url, "SELECT k, v FROM raw")) == [("mine", "kept"), ("r.1", "new")]
    assert query(any_sql_url, "SELECT k FROM beside") == []
    sink.close()
    assert make(table).position(LOG) == 1


def test_commands_that_make_no_table_of_the_name_are_refused(any_sql_url: str, make: Any) -> None:
    table = RawTable(
        name="other", prefix="r.", create=("CREATE TABLE IF NOT EXISTS raw (k VARCHAR(9))",),
        upsert="INSERT INTO raw VALUES (:k)", remove="DELETE FROM raw WHERE k = :k",
        parameters=parameters, key_parameters=lambda id: {"k": id},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="make no table of that name"):
        make(table).attach()


def test_what_waits_and_can_no_longer_be_made_blocks_nothing(any_sql_url: str, make: Any) -> None:
    """The table was declared anew since; its neighbours are not refused for that."""
    plain = Table(
        name="children",
        key="c.{id}",
        columns=(Column("id", "integer", "key"), Column("parent", "integer", "state")),
        references={"parent": "parents.id"},
    )
    sink = make(PARENTS, plain)
    sink.apply([Change("c.1", 1, b"no JSON", state="7"), Change("c.2", 2, b'{"p":8}', state="7")])
    assert sink.standing() == []
    sink.close()

    sink = make(PARENTS, CHILDREN)
    sink.apply([parent(8, 3, "b")])
    sink.apply_at([], LOG, 3)
    sink.apply_at([parent(9, 4, "c")], LOG, 4)

    assert parents(any_sql_url) == {8: "b", 9: "c"}
    assert children(any_sql_url) == {2: 8}
    assert sink.standing()[0].waiting == 1
