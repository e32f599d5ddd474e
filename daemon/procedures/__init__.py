"""Things done once, each a readable script of steps."""
