"""Packages that only some commands need."""

from importlib import import_module
from importlib.metadata import packages_distributions, requires, version

from packaging.requirements import Requirement

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


def installed_version(package: str) -> str | None:
    """The version of what is imported by this name, whichever build of it is installed; None where there is none."""
    return next((version(name) for name in packages_distributions().get(package, ())), None)


def check_tried(package: str, purpose: str, *, install: str) -> None:
    """Makes sure that a package is there in a version that jrm-plugin was tried with, by the bounds of its extra.

    Args:
        package: as it is imported, and as the extra names it.
        purpose: what needs it, the beginning of the sentence.
        install: what pip is to install.

    Raises:
        JRMError: it is not there, too old or too new.
    """
    installed = installed_version(package)
    if installed is None:
        raise JRMError(f"{purpose} needs {package}, which is not installed: pip install '{install}'.")
    bounds = next(r.specifier for r in map(Requirement, requires("jrm-plugin") or ()) if r.name == package)
    if not bounds.contains(installed, prereleases=True):
        tried = ",".join(sorted(map(str, bounds), reverse=True))
        raise JRMError(
            f"{purpose} was tried with {package} {tried} and not with the {installed} that is installed, which could "
            f"give other numbers: pip install '{install}'."
        )
