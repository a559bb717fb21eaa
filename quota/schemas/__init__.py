"""Wire types: what crosses HTTP between the programs, and nothing else."""
