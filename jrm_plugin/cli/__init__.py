"""The command line `jrm`; the outermost layer, which nothing imports."""

from jrm_plugin.cli.app import main

__all__ = ["main"]
