"""vLLM: a JRM checkpoint as a pooling model, whose prefix cache encodes source images and rubrics once a group.

vLLM loads `plugin` by itself (entry point group `vllm.general_plugins`) in each of its processes; nothing needs to be
imported by hand. So this package imports nothing before it is asked for, and vLLM only where it is used.
"""

import os
from importlib.metadata import entry_points

from jrm_plugin.extras import check_tried, installed_version

__all__ = ["registered"]

GROUPS = ("vllm.general_plugins", "vllm.io_processor_plugins")


def registered() -> str:
    """How vLLM, which is not imported for it, finds JRM.

    Raises:
        JRMError: it is a vLLM with which JRM was not tried.
        RuntimeError: it does not find JRM; the message says why.
    """
    check_tried("vllm", "the plug-in", install="jrm-plugin[vllm]")
    for group in GROUPS:
        found = entry_points(group=group, name="jrm")
        if not found:
            raise RuntimeError(f"jrm-plugin is installed without its entry point in {group}; install it again")
        for entry_point in found:
            entry_point.load()
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "jrm" not in allowed.split(","):
        raise RuntimeError(f"the variable VLLM_PLUGINS, which is {allowed!r}, leaves jrm out; add it")
    return f"registered as a model and as the IO processor jrm of vLLM {installed_version('vllm')}"
