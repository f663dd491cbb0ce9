"""Cost, size and false positives of the existence filters.

    python benchmarks/filters.py [--ids 200000] [--bulk 0]

`--bulk 10000000` also builds a cuckoo filter of ten million ids, in pages as a warm-up does.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sync_engine.core.filters import BloomFilter, CuckooFilter, ExistenceFilter, FilterManager


def ns_each(call: Callable[[str], object], ids: Sequence[str]) -> float:
    began = time.perf_counter()
    for id in ids:
        call(id)
    return (time.perf_counter() - began) / len(ids) * 1e9


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - began


HEAD = ("add", "bulk add", "hit", "miss", "bulk", "B an id", "dump ms", "load ms", "false +")


def measure(name: str, make: Callable[[], ExistenceFilter], parse: Any, count: int) -> None:
    ids = [f"user.{number}" for number in range(count)]
    others = [f"other.{number}" for number in range(count)]
    one, many = make(), make()
    add = ns_each(one.add, ids)
    _, bulk_s = timed(lambda: many.add_many(ids))
    hit, miss = ns_each(one.might_contain, ids), ns_each(one.might_contain, others)
    answers, look_s = timed(lambda: one.might_contain_many(others))
    data, dump_s = timed(one.to_bytes)
    again, load_s = timed(lambda: parse(data))
    assert all(again.might_contain_many(ids))
    row = (add, bulk_s / count * 1e9, hit, miss, look_s / count * 1e9)
    rest = f"{one.size_bytes / count:>9.2f}{dump_s * 1e3:>9.2f}{load_s * 1e3:>9.2f}"
    print(f"{name:<18}", *(f"{value:>8,.0f}" for value in row), rest, f"{sum(answers) / count:.1e}")


def measure_manager(count: int) -> None:
    ids = [f"user.{number}" for number in range(count)]
    others = [f"other.{number}" for number in range(count)]
    manager = FilterManager(capacity=count, covered=lambda: True, lock=threading.Lock)
    warmup = manager.begin_warmup()
    _, warm_s = timed(lambda: warmup.add_many(ids))
    warmup.complete()
    print(f"\nFilterManager, {count:,} ids (ns each)")
    print(f"  warm-up            {warm_s / count * 1e9:>8,.0f}")
    print(f"  add, known         {ns_each(manager.add, ids):>8,.0f}")
    print(f"  maybe              {ns_each(manager.definitely_absent, ids):>8,.0f}")
    print(f"  absent             {ns_each(manager.definitely_absent, others):>8,.0f}")
    outcome = ns_each(partial(manager.outcome, present=True), ids)
    print(f"  outcome            {outcome:>8,.0f}")
    _, again_s = timed(lambda: manager.add_many(ids))
    print(f"  add_many, known    {again_s / count * 1e9:>8,.0f}")
    print(f"  add, new           {ns_each(manager.add, others):>8,.0f}")


def measure_bulk(count: int) -> None:
    filter = CuckooFilter(count)
    spent = 0.0
    for start in range(0, count, 50_000):
        page = [f"user.{number}" for number in range(start, min(count, start + 50_000))]
        spent += timed(lambda page=page: filter.add_many(page))[1]  # type: ignore[misc]
    others = [f"other.{number}" for number in range(500_000)]
    wrong = sum(filter.might_contain_many(others))
    data, dump_s = timed(filter.to_bytes)
    _, load_s = timed(lambda: CuckooFilter.from_bytes(data))
    size = filter.size_bytes / count
    print(f"\n{count:,} ids in pages of 50,000: {spent:.1f} s, {size:.1f} B an id, ", end="")
    print(f"{filter.tables} table(s), false positives {wrong / len(others):.1e}, ", end="")
    print(f"dump {dump_s * 1e3:.0f} ms, load {load_s * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=200_000)
    parser.add_argument("--bulk", type=int, default=0)
    options = parser.parse_args()
    count = options.ids
    print(f"{count:,} ids; ns each unless said")
    print(f"{'':<18}", *(f"{name:>8}" for name in HEAD))
    parse = CuckooFilter.from_bytes
    measure("cuckoo, presized", lambda: CuckooFilter(count), parse, count)
    measure("cuckoo, grown", lambda: CuckooFilter(count // 50), parse, count)
    few = min(count, 50_000)
    measure("bloom, presized", lambda: BloomFilter(few), BloomFilter.from_bytes, few)
    measure("bloom, grown", lambda: BloomFilter(few // 50), BloomFilter.from_bytes, few)
    measure_manager(count)
    if options.bulk:
        measure_bulk(options.bulk)


if __name__ == "__main__":
    main()
