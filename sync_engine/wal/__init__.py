"""The write-ahead log: one SQLite file, appended by leaders, read by cursors."""
