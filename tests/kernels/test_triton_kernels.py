"""What only a Triton kernel can get wrong: launch shapes, unwritten outputs, other devices' compilers."""

import os
import subprocess
import sys

import pytest
import torch

from jrm_plugin.kernels._backend import has_triton

if not has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

from jrm_plugin.kernels import ranking_loss_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NaN in branches that are not taken

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jrm_plugin.kernels import pooling_triton, ranking_loss_triton
from jrm_plugin.kernels.ranking_loss_torch import LOG_SIGMA_MAX, LOG_SIGMA_MIN, LOG_SIGMA_SCALED

target = GPUTarget("cuda", 90, 32) if sys.argv[1] == "cuda" else GPUTarget("hip", "gfx942", 64)

def compile_kernel(kernel, types, constants):
    types = types | dict.fromkeys(constants, "constexpr")
    triton.compile(ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants), target=target)

scores = "mu_i_ptr log_sigma_i_ptr mu_j_ptr log_sigma_j_ptr margin_ptr".split()
outputs = "loss_ptr dm_ptr dlog_sigma_i_ptr dlog_sigma_j_ptr margin tie_threshold tie_constant".split()
types = dict.fromkeys(scores, "*bf16") | dict.fromkeys(outputs[:4], "*fp32") | dict.fromkeys(outputs[4:], "fp32")
bounds = {"LOG_SIGMA_MIN": LOG_SIGMA_MIN, "LOG_SIGMA_MAX": LOG_SIGMA_MAX, "LOG_SIGMA_SCALED": LOG_SIGMA_SCALED}
for expected, ties, threshold in ((False, True, True), (True, True, True), (False, True, False)):
    flags = {"EXPECTED": expected, "HAS_MARGINS": ties, "HAS_TIES": ties, "HAS_THRESHOLD": threshold}
    compile_kernel(
        ranking_loss_triton._pair_losses_kernel, types | {"tie_ptr": "*i1", "N": "i32"}, bounds | flags | {"BLOCK": 256}
    )

strides = "L H hidden_stride_b hidden_stride_l hidden_stride_h ids_stride_b ids_stride_l reward_token_id".split()
types = {"hidden_ptr": "*bf16", "input_ids_ptr": "*i64", "cu_seqlens_ptr": "*i32", "pooled_ptr": "*bf16"}
types |= {"row_ptr": "*i64", "count_ptr": "*i32"} | dict.fromkeys(strides, "i64")
constants = {"K": 2, "K_PADDED": 2, "BLOCK_L": 2048, "BLOCK_H": 2048}
compile_kernel(pooling_triton._gather_kernel, types, constants | {"PACKED": False})
# as a launch does it: sizes of 32 bits, and a 1 is a constant
small = types | dict.fromkeys(strides, "i32")
compile_kernel(
    pooling_triton._gather_kernel, small, constants | {"PACKED": True} | {"hidden_stride_h": 1, "ids_stride_l": 1}
)
compile_kernel(pooling_triton._gather_kernel, small, constants | {"PACKED": False} | dict.fromkeys(strides, 1))
types = {"grad_pooled_ptr": "*bf16", "row_ptr": "*i64", "grad_hidden_ptr": "*bf16", "H": "i32"}
compile_kernel(pooling_triton._scatter_kernel, types, {"BLOCK_H": 1024})
"""


@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_kernels_compile_for(target, tmp_path):
    """Down to the machine code of an H100 and of an MI300, neither of which it takes to compile."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, target], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("objective", ["marginal", "expected"])
def test_the_shape_of_the_launch_does_not_matter(objective):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(100, generator=generator).to(DEVICE) * scale for scale in (4, 2, 4, 2)]
    tie = torch.arange(100, device=DEVICE) % 3 == 0
    runs = [
        ranking_loss_triton.launch(*scores, None, 0.5, tie, 0.25, objective, block=block) for block in (32, 128, 1024)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_every_output_is_written():
    """torch fills new memory with NaN in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        scores = [torch.linspace(-3, 3, 77, device=DEVICE) * scale for scale in (1, -1, 2, 1)]
        outputs = ranking_loss_triton.launch(*scores, None, 0.0, None, 0.0, "marginal")
        assert all(x.isfinite().all() for x in outputs)

        from jrm_plugin.kernels.pooling_triton import gather, scatter

        hidden_BLH, input_ids_BL = torch.ones(3, 5, 70, device=DEVICE), torch.eye(3, 5, device=DEVICE).long()
        pooled_BKH, row_BK, count_B = gather(hidden_BLH, input_ids_BL, None, 1, 1)
        assert (pooled_BKH == 1).all() and row_BK.flatten().tolist() == [0, 6, 12] and (count_B == 1).all()
        assert scatter(pooled_BKH, row_BK, 15).sum() == 3 * 70
    finally:
        torch.use_deterministic_algorithms(False)
