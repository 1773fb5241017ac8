"""What vLLM loads in each of its processes, whatever model it serves: it makes JRM known, and loads no model."""

import logging

from jrm_plugin.errors import JRMError
from jrm_plugin.extras import check_tried

logger = logging.getLogger(__name__)


def register() -> None:
    """Makes the config and the model class of JRM checkpoints known to vLLM; calling it again changes nothing.

    With a vLLM that JRM was not tried with, which could give other numbers, it warns and makes nothing known.
    """
    try:
        check_tried("vllm", "JRM in vLLM", install="jrm-plugin[vllm]")
    except JRMError as error:
        logger.warning("%s Until then, vLLM does not know JRM checkpoints.", error)
        return
    from vllm import ModelRegistry

    import jrm_plugin.model.configuration  # noqa: F401  by what is registered there, vLLM reads config.json

    ModelRegistry.register_model("JRMForRewardModeling", "jrm_plugin.integrations.vllm.model:JRMForVLLM")


def io_processor() -> str:
    """The class that `--io-processor-plugin jrm` chooses."""
    return "jrm_plugin.integrations.vllm.io_processor.JRMIOProcessor"
