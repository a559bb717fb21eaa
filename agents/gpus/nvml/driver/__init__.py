"""The only importer of `pynvml`; runs in the collector's process alone."""
