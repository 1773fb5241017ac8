"""How a pool of scorers is set up; read without Ray."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jrm_plugin.errors import JRMError
from jrm_plugin.scoring.remote import is_server


@dataclass(frozen=True)
class ScorerSettings:
    """A pool of scorers on a Ray cluster.

    Args:
        model_path: a JRM folder, a LoRA folder, a hub name, or `jrm-tiny`; every node that may hold a replica reads it.
            Or the address of a reward server, `http://host:8000`.
        device: of the model; by default `cuda` if a replica has a share of a GPU, and `cpu` if it has none.
        num_gpus, num_cpus: what each replica takes of the cluster; a share of a GPU is a fraction.
        replicas: scorers in the pool. A group of candidates goes to one of them, which shares their prefix.
        batch_window: seconds that a replica waits for further calls before it computes.
        max_batch: samples that it computes at once.
        max_in_flight: calls that one process has open at once; further ones wait.
        lease: seconds without a heartbeat of any process of the run after which a replica ends itself.

    Raises:
        JRMError: a value is missing or out of its range.
    """

    model_path: str | None = None
    device: str | None = None
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    replicas: int = 1
    batch_window: float = 0.02
    max_batch: int = 64
    max_in_flight: int = 256
    lease: float = 60.0

    # how errors name the section that the values come from
    section: ClassVar[str] = "the scorer settings"

    def __post_init__(self):
        if not self.model_path or not isinstance(self.model_path, str):
            raise JRMError(
                f"{self.section} have no model_path; give the folder or the hub name of a JRM checkpoint, or jrm-tiny."
            )
        if is_server(self.model_path) and (self.num_gpus or self.device):
            raise JRMError(
                f"num_gpus and device in {self.section} are of a model that is loaded here, and {self.model_path} is a "
                "server's; leave them out."
            )
        for name, low in {"num_gpus": 0, "num_cpus": 0, "batch_window": 0}.items():
            self._check_number(name, low)
        for name, low in {"replicas": 1, "max_batch": 1, "max_in_flight": 1}.items():
            self._check_number(name, low, whole=True)
        self._check_number("lease", 1)

    def _check_number(self, name: str, low: float, *, whole: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < low or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise JRMError(f"{name} in {self.section} must be {kind} of at least {low}, not {value!r}.")
