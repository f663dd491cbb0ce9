"""The ways data takes: written, delivered, read, guarded."""
