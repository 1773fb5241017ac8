"""A child process as trainers start one: reads rewards from a file, asks them, and prints what they answer."""

import asyncio
import json
import pickle
import sys
from pathlib import Path


async def side_by_side(functions, arguments):
    """Several reward functions about one group, in threads at the same time, as TRL's AsyncGRPO asks them."""
    return await asyncio.gather(*(asyncio.to_thread(function, **arguments) for function in functions))


if __name__ == "__main__":
    doors, calls = pickle.loads(Path(sys.argv[1]).read_bytes())
    answers = {"trl": asyncio.run(side_by_side(doors["trl"], calls["trl"]))}
    answers["flow_grpo"] = doors["flow_grpo"](**calls["flow_grpo"])[0]
    answers["flow_factory"] = doors["flow_factory"](**calls["flow_factory"]).rewards.tolist()
    answers["ms_swift"] = doors["ms_swift"](**calls["ms_swift"])
    inferred = asyncio.run(doors["verl_omni"].infer(calls["verl_omni"]))
    answers["verl_omni"] = [score.mu["overall"] for score in inferred.scores]
    print(json.dumps(answers))
