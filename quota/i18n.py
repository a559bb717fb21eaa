"""Korean and English texts of what the service says."""
