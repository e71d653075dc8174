"""How fast a device is, and how fast a model runs on it: measured there, written down as one JSON document."""
