"""Saved states of the hub, read without it: what would be decided on one now, and why everything else waits."""
