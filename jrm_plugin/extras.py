"""Packages that only some commands need."""

from importlib import import_module

from jrm_plugin.errors import JRMError


def require(packages: str, purpose: str, *, install: str) -> None:
    """Makes sure that what a command needs is there, before it does any work.

    Args:
        packages: what is imported, separated by spaces.
        purpose: what needs them, the beginning of the sentence.
        install: what pip is to install.

    Raises:
        JRMError: names the first package that cannot be imported, and why.
    """
    for package in packages.split():
        try:
            import_module(package)
        except ImportError as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise JRMError(
                f"{purpose} needs {package}, which cannot be used here ({reason}): pip install '{install}'."
            ) from error
