"""The pure scheduling core: what the hub knows goes in; who starts where, and why others wait, comes out."""
