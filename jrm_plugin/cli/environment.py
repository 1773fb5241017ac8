"""`jrm env`: what is installed, on which device, and which integrations are there."""

import logging
import os
import pkgutil
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec

import jrm_plugin.integrations

PACKAGES = ("jrm-plugin", "torch", "transformers", "trl", "peft", "accelerate", "verl", "ray", "deepspeed", "triton")


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
    """Each integration, which is named as its framework is imported: registered, ready, not installed, or failed."""
    logging.disable(logging.WARNING)  # what frameworks say of this machine when they are imported
    found = {}
    for module in pkgutil.iter_modules(jrm_plugin.integrations.__path__):
        name = module.name
        if find_spec(name) is None:
            extra = name in (metadata("jrm-plugin").get_all("Provides-Extra") or ())
            found[name] = "not installed" + (f": pip install jrm-plugin[{name}]" if extra else "")
            continue
        try:
            adapter = import_module(f"jrm_plugin.integrations.{name}")
            found[name] = adapter.registered() if hasattr(adapter, "registered") else "ready"
        except Exception as error:  # a broken framework must not break the report of the others
            found[name] = f"failed: {type(error).__name__}: {error}"
    logging.disable(logging.NOTSET)
    return found
