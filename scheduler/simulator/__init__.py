"""A GPU cluster that is a process of its own, for laptops, tests and traces; `gpuhub simulate` starts it."""
