"""The config that revector gets in the sandbox."""

from sandbox.stack import Sandbox


def render(sandbox: Sandbox) -> str:
    """A config file (TOML) for the running sandbox."""
    return f"# revector, sandbox\n# source {sandbox.source_dsn}\n"
