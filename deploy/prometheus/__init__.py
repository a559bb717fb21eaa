"""Prometheus for the hub: its configuration, rules and alerts, and the server itself where there is none."""
