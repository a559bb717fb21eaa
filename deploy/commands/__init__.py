"""The commands of firms and operators: each calls the service once or twice and shows what it answered."""
