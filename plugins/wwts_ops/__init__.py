"""wwts-ops: the operations system of a Chinese shop's image tagging."""

__version__ = "0.1.0"
