"""Replays a trace of jobs in virtual time through the same `decide` that runs live; `gpuhub replay` calls it."""
