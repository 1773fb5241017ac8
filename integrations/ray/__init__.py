"""Ray: a pool of scorers that all processes of a run share."""

from jrm_plugin.integrations.ray.scorer_pool import ScorerPool, shared_pool
from jrm_plugin.integrations.ray.settings import ScorerSettings

__all__ = ["ScorerPool", "ScorerSettings", "shared_pool"]
