"""Plays the hub's future in virtual time from a snapshot of the core; forecasts and what-if questions call it."""
