"""Commands: one module per group; prints and exit codes."""
