"""Pure parts: no input or output, no clock, no threads."""
