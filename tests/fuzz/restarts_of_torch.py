"""How often processes that torchrun starts anew connect, with nothing but torch: one of two is killed, once.

    python tests/fuzz/restarts_of_torch.py [--runs 8] [--max-restarts 3]

What `jrm train` cannot do better under `torchrun --max-restarts`. Not collected by pytest: it takes minutes.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import torch
from torch import distributed

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
SECONDS = 60  # after which a run counts as one that hangs


def work() -> int:
    distributed.init_process_group("gloo")
    ones = torch.ones(1)
    distributed.all_reduce(ones)
    if os.environ[RESTARTS] == "0" and distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(5):
            time.sleep(0.5)
            distributed.all_reduce(ones)
    except RuntimeError:  # the other process is gone
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--max-restarts", type=int, default=3)
    options = parser.parse_args()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["--max-restarts", str(options.max_restarts), __file__]
    ends: Counter[str] = Counter()
    for _ in range(options.runs):
        # In a session of its own, so that what hangs is ended with all its processes.
        launched = subprocess.Popen(launch, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            ends["went on" if launched.wait(SECONDS) == 0 else "did not connect"] += 1
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
            launched.wait()
            ends["hung"] += 1
    print(dict(ends))
    return 0


if __name__ == "__main__":
    sys.exit(work() if RESTARTS in os.environ else main())
