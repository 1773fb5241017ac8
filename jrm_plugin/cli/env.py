"""`jrm env`: what is installed, on which device, and which integrations are there."""

import argparse
import json
import logging
import os
import pkgutil
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

import jrm_plugin.integrations
from jrm_plugin.cli.common import add_json_argument, make_table, print_table

PACKAGES = ("jrm-plugin", "torch", "transformers", "trl", "peft", "accelerate", "verl", "ray", "deepspeed", "triton")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    shown = versions() | untried_versions()
    sections = {"Versions": shown, "Device": _device(), "Integrations": _integrations()}
    if options.json:
        print(json.dumps(sections, indent=2))
        return 0
    for title, rows in sections.items():
        table = make_table(title, "what", "")
        for name, value in rows.items():
            table.add_row(name, value)
        print_table(table)
    return 0


def versions() -> dict[str, str]:
    """Of Python and of what a result may depend on, by package."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def untried_versions() -> dict[str, str]:
    """What is installed in a version outside the bounds of jrm-plugin: a sentence by package."""
    sentences = {}
    for line in requires("jrm-plugin") or ():
        requirement = Requirement(line)
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            bounds = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            sentences[requirement.name] = f"{installed} is outside of {bounds}, with which jrm-plugin was tried"
    return sentences


def _device() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return {f"cuda:{k}": torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    return {"cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}


def _integrations() -> dict[str, str]:
    """Each integration, which is named as its framework is imported: registered, ready, not installed, or failed."""
    logging.disable(logging.WARNING)  # what frameworks say of this machine when they are imported
    states = {}
    for module in pkgutil.iter_modules(jrm_plugin.integrations.__path__):
        name = module.name
        if find_spec(name) is None:
            extra = name in (metadata("jrm-plugin").get_all("Provides-Extra") or ())
            states[name] = "not installed" + (f": pip install jrm-plugin[{name}]" if extra else "")
            continue
        try:
            adapter = import_module(f"jrm_plugin.integrations.{name}")
            states[name] = adapter.registered() if hasattr(adapter, "registered") else "ready"
        except Exception as error:  # a broken framework must not break the report of the others
            states[name] = f"failed: {type(error).__name__}: {error}"
    logging.disable(logging.NOTSET)
    return states
