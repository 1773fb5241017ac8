"""Schemathesis against the OpenAPI schema of a real server: what the schema promises is what the server does.

    python tests/fuzz/openapi.py [--examples 100] [--seed 0]

Every operation of the schema is asked with data that it allows and with data that it does not. The answers must have
the statuses, the content types and the shapes that the schema says, and none may be a fault of the server.
"""

import argparse
import subprocess
import sys

from hostile_requests import running_server

# What a schema cannot say of base64, and what is wrong with one sample of a request is that sample's own error.
EXCLUDED = ("positive_data_acceptance", "negative_data_rejection")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with running_server() as (_, address, folder):
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--no-color"]
        command += ["--checks", "all", "--exclude-checks", ",".join(EXCLUDED), "--continue-on-failure"]
        command += ["--max-examples", str(options.examples), "--seed", str(options.seed)]
        # a critique of 2,048 tokens takes its time
        command += ["--request-timeout", "300", "--max-response-time", "300"]
        return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
