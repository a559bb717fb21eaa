"""How the programs are started, and the command that people type: the only package that knows all of them."""
