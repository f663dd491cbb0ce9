"""Hours of asyncio in no time, the same each time."""

from __future__ import annotations

import asyncio
import threading
import time

from sync_engine.testing import run_virtual


def test_an_hour_of_sleep_costs_nothing() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        return loop.time() - start

    started = time.monotonic()
    assert abs(run_virtual(main()) - 3600) < 0.001
    assert time.monotonic() - started < 5


def test_timers_fire_in_order_and_timeouts_work() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def at(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append(name)

        await asyncio.gather(at(3, "c"), at(1, "a"), at(2, "b"))
        try:
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")
        return seen

    assert run_virtual(main()) == ["a", "b", "c", "timeout"]


def order(seed: int | None) -> list[int]:
    async def main() -> list[int]:
        seen: list[int] = []

        async def client(number: int) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(number)

        await asyncio.gather(*(client(number) for number in range(5)))
        return seen

    return run_virtual(main(), seed=seed)


def test_a_seed_orders_the_turns_and_replays_them() -> None:
    assert order(7) == order(7)
    assert len({tuple(order(seed)) for seed in range(20)}) > 10
    assert order(None) == [0, 1, 2, 3, 4] * 3


def test_time_stands_still_while_a_thread_works_for_the_loop() -> None:
    async def main() -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        loop.call_later(3600, release.set)  # would fire at once if time ran ahead
        start = loop.time()
        result = await asyncio.wait_for(asyncio.to_thread(release.wait, 0.05), 1000)
        return result, loop.time() - start

    assert run_virtual(main()) == (False, 0.0)


def test_other_threads_may_call_in() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(future.set_result, "called")
        )
        thread.start()
        result = await future
        thread.join()
        return result

    assert run_virtual(main()) == "called"
