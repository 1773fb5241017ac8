# What type checkers see of the kernels in a checkout, where they are not in the package's folder; no wheel holds it.
from operators import *  # noqa: F403
