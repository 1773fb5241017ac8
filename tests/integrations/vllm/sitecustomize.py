"""Makes torchvision importable beside a CPU build of torch, in every process of the environment of `make test-vllm`.

pip installs torchvision's CUDA build, whose library does not load there; at import it describes two operators of it,
which are defined here just before. vLLM starts processes of its own, so this is no fixture: the Makefile copies it into
the environment.
"""

import sys
from importlib.abc import MetaPathFinder

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class OperatorsOfTorchvision(MetaPathFinder):
    library = None  # the operators live as long as it does

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(operator + SIGNATURE)


sys.meta_path.insert(0, OperatorsOfTorchvision())
