"""One file per published system: its claims, measured again on a laptop. `make reproduce SYSTEM=slug`."""
