"""The engine's parts, wired: built, started and stopped in order."""

from sync_engine.house.house import House
from sync_engine.house.stores import Stores

__all__ = ["House", "Stores"]
