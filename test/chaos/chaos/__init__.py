"""The chaos harness: see `__main__.py`."""
