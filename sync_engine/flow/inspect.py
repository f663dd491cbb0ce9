"""Where an item is, how the engine does: questions that change nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from sync_engine.core.filters import FilterManager, FilterTrust
from sync_engine.core.item import Change
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import EngineState, Health, ItemStatus, TierHealth
from sync_engine.errors import StorageError
from sync_engine.flow.follower import Follower
from sync_engine.flow.tier import Tier
from sync_engine.flow.writer import Writer

__all__ = ["Inspectable", "engine_stats", "item_status", "measure_health"]


class Inspectable(Protocol):
    """The parts of an engine that are looked at."""

    log: Any
    l1: Any
    coherence: Any
    l2: Any
    l3: Any
    filters: FilterManager
    writer: Writer
    followers: dict[str, Follower]
    metrics: Any
    keeper: Any
    mirror: Any


def item_status(parts: Inspectable, change_id: str) -> ItemStatus:
    """Tell where an item is; a tier that cannot be asked is told as None."""
    newest: Change | None = parts.log.pending(change_id)
    waiting: list[str] = []
    if newest is not None:
        waiting = [name for name in parts.followers if _waits(parts, name, newest)]
    in_l1 = parts.l1.get(change_id)
    in_l2 = _ask(parts.l2, change_id)
    in_l3 = _ask(parts.l3, change_id)
    for known in (in_l1, in_l2, in_l3):
        if isinstance(known, Change) and (newest is None or newest.version < known.version):
            newest = known
    return ItemStatus(
        id=change_id,
        version=0 if newest is None else newest.version,
        deleted=newest is not None and newest.content is None,
        pending=tuple(waiting),
        in_l1=in_l1 is not None and in_l1.content is not None,
        in_l2=_holds(in_l2),
        in_l3=_holds(in_l3),
        dead_letter=next(
            (letter.error for letter in parts.log.dead.list() if letter.change.id == change_id),
            None,
        ),
    )


def _waits(parts: Inspectable, name: str, change: Change) -> bool:
    """Whether a follower has yet to take a change that is in the overlay."""
    position = parts.log.position_of(change)
    return position is None or bool(position > parts.log.cursor(name))


def _ask(tier: Tier[Any] | None, change_id: str) -> Change | str | None:
    if tier is None:
        return "absent tier"
    try:
        found: dict[str, Change] = tier.call("get_many", tier.store.get_many, [change_id])
    except StorageError:
        return "no answer"
    return found.get(change_id)


def _holds(answer: Change | str | None) -> bool | None:
    if isinstance(answer, str):
        return None
    return answer is not None and answer.content is not None


def measure_health(parts: Inspectable | None, state: EngineState) -> Health:
    """Ask every tier, and tell what is amiss."""
    if parts is None or state in {EngineState.CREATED, EngineState.CLOSED}:
        return Health(
            state=state,
            live=False,
            ready=False,
            degraded=(f"the engine is {state.value}",),
            tiers={},
            pending_items=0,
            pending_bytes=0,
            pending_age_s=0.0,
            dead_letters=0,
            backpressure=BackpressureLevel.NORMAL.name,
        )
    tiers = {
        name: _tier_health(parts, name, tier)
        for name, tier in (("l2", parts.l2), ("l3", parts.l3))
        if tier is not None
    }
    wal = parts.log.stats()
    level = parts.writer.level()
    degraded = [f"{name} does not answer: {t.error}" for name, t in tiers.items() if not _up(t)]
    degraded += [f"delivery to {name} is paused" for name, t in tiers.items() if t.paused]
    if parts.coherence is not None and parts.coherence.error:
        degraded.append(f"other engines are not heard on the feed: {parts.coherence.error}")
    if wal.dead_letters:
        degraded.append(f"{wal.dead_letters} dead letters wait for a decision")
    if wal.lost_positions:
        degraded.append(f"the log's disk lost {wal.lost_positions} synced positions")
    if level > BackpressureLevel.NORMAL:
        degraded.append(f"back-pressure is {level.name}")
    if state is EngineState.FAILED:
        degraded.append("the log could not be synced: nothing more is accepted")
    live = state is EngineState.RUNNING
    return Health(
        state=state,
        live=live,
        ready=live and _up(tiers["l3"]) and level is not BackpressureLevel.CRITICAL,
        degraded=tuple(degraded),
        tiers=tiers,
        pending_items=wal.pending_items,
        pending_bytes=wal.pending_bytes,
        pending_age_s=parts.writer.oldest_age_s,
        dead_letters=wal.dead_letters,
        backpressure=level.name,
        warnings=parts.l3.warnings,
    )


def _up(tier: TierHealth) -> bool:
    return tier.attached and tier.latency_s is not None


def _tier_health(parts: Inspectable, name: str, tier: Tier[Any]) -> TierHealth:
    follower = parts.followers[name]
    latency: float | None = None
    error = follower.last_error
    if tier.attached:
        try:
            latency = tier.store.ping()
        except StorageError as exc:
            error = str(exc)
    elif tier.parked:
        error = "detached on request"
    else:  # the follower may never have tried, or say no more than that the circuit is open
        error = tier.attach_error or error
    return TierHealth(
        attached=tier.attached,
        circuit=tier.guard.breaker.state.value,
        latency_s=latency,
        lag_items=parts.log.lag(name),
        paused=follower.paused,
        error=error,
    )


def engine_stats(parts: Inspectable) -> dict[str, Any]:
    """Return counters and gauges of every part."""
    return {
        "log": asdict(parts.log.stats()),
        "l1": parts.l1.stats(),
        "l2": None if parts.l2 is None else dict(parts.l2.store.stats()),
        "l3": dict(parts.l3.store.stats()),
        "filter": {
            **parts.filters.stats(),
            "trusted": parts.filters.trust is FilterTrust.TRUSTED,
            "covered": parts.keeper.covered(),
        },
        "coherence": None if parts.coherence is None else parts.coherence.stats(),
        "merkle_mirror": None if parts.mirror.tier is None else parts.mirror.stats(),
        "cursors": parts.log.followers,
        "backpressure": parts.writer.level().name,
        "metrics": parts.metrics.snapshot(),
    }
