"""Places that changes come from."""
