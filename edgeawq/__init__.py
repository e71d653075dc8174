"""edgeawq: from a checkpoint to a chat on a fleet of small devices."""

__version__ = "0.1.0"
