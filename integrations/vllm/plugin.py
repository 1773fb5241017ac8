"""What vLLM loads in each of its processes, whatever model it serves: it makes JRM known, and loads none."""


def register() -> None:
    """Makes the config and the model class of JRM checkpoints known to vLLM; calling it again changes nothing."""
    from vllm import ModelRegistry

    import jrm_plugin.model.configuration  # noqa: F401  vLLM reads config.json by what is registered here

    ModelRegistry.register_model("JRMForRewardModeling", "jrm_plugin.integrations.vllm.model:JRMForVLLM")


def io_processor() -> str:
    """The class that `--io-processor-plugin jrm` chooses."""
    return "jrm_plugin.integrations.vllm.io_processor.JRMIOProcessor"
