"""Places that changes are delivered to."""
