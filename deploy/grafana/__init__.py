"""The hub's Grafana dashboards: written here in Python, kept as JSON beside, shown by any Grafana. Dev only."""
