"""Files of directories as a source: watched, scanned, taken when they are finished."""

from sync_engine.sources.file_watch.finder import Finder
from sync_engine.sources.file_watch.ledger import FileLedger, Row, State
from sync_engine.sources.file_watch.names import path_of, text_of
from sync_engine.sources.file_watch.patterns import ASIDE, IGNORED, Patterns
from sync_engine.sources.file_watch.policy import FindPolicy, Mode
from sync_engine.sources.file_watch.source import FileWatchSource, from_settings
from sync_engine.sources.file_watch.watcher import Root, Tree, Waker, Watcher, make_watcher

__all__ = [
    "ASIDE",
    "IGNORED",
    "FileLedger",
    "FileWatchSource",
    "FindPolicy",
    "Finder",
    "Mode",
    "Patterns",
    "Root",
    "Row",
    "State",
    "Tree",
    "Waker",
    "Watcher",
    "from_settings",
    "make_watcher",
    "path_of",
    "text_of",
]
