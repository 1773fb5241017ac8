"""`jrm env`: what is installed, on which device, and which integrations are there."""

import os
import pkgutil
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import jrm_plugin.integrations

PACKAGES = ("jrm-plugin", "torch", "transformers", "trl", "peft", "accelerate", "verl", "deepspeed", "triton")


def environment() -> dict[str, dict[str, str]]:
    """Versions, device and integrations, as text by name."""
    return {"Versions": versions(), "Device": _device(), "Integrations": _integrations()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _device() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return {f"cuda:{k}": torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    return {"cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}


def _integrations() -> dict[str, str]:
    """Imports every integration of the package: works, its framework is not installed, or why it failed."""
    found = {}
    for module in pkgutil.iter_modules(jrm_plugin.integrations.__path__):
        try:
            import_module(f"jrm_plugin.integrations.{module.name}")
            found[module.name] = "works"
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("jrm_plugin"):
                raise
            found[module.name] = f"not installed ({error.name} is missing): pip install jrm-plugin[{module.name}]"
        except Exception as error:  # a broken framework must not break the report of the others
            found[module.name] = f"failed: {type(error).__name__}: {error}"
    return found
