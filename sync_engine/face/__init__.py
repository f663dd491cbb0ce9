"""The parts of the public face, each a few calls that belong together; `engine` joins them."""
