"""Public test kit: manual clock, fault injectors, contract test classes."""
