"""JRM rewards for ms-swift's GRPO: `--external_plugins examples/ms_swift/jrm_rewards.py --reward_funcs jrm`.

`jrm` is the overall reward; `jrm_instruction_following` and `jrm_visual_quality` are one of a dimension each, for
`--scale_rewards gdpo`. They share one model and one pass. The variables of `jrm_plugin.rollouts.VARIABLES` configure
them (`JRM_MODEL`, `JRM_TASK`, `JRM_RENDER`, `JRM_FLOOR` …).

What is read of a row: `instruction`, or else the text of the last user message; the source images, which are
`source_images`, `source_image` or ms-swift's own `images`; and `edited_image` where it is scored. What cannot be scored
has no reward with `JRM_ON_ERROR=leave_out`.
"""

from functools import cache

from swift.rewards import ORM, orms

from jrm_plugin import load_scorer
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.rollouts import arguments_from_environment
from jrm_plugin.scoring.remembered import RememberedScores


class JRMReward(ORM):
    dimension = None  # that of the variables

    def __init__(self, args=None, **kwargs):
        super().__init__(args, **kwargs)
        settings = arguments_from_environment("the JRM plug-in of ms-swift")
        settings["dimension"] = self.dimension or settings.get("dimension", OVERALL)
        model = (settings.pop(name, None) for name in ("model", "device", "dtype"))
        self.judge = RolloutJudge.load(shared_scorer(*model), **settings)

    def __call__(self, completions, messages, prompt_id=None, trainer_state=None, **columns):
        rows = []
        for number, conversation in enumerate(messages):
            row = {name: values[number] for name, values in columns.items() if values[number] is not None}
            questions = [message["content"] for message in conversation if message["role"] == "user"]
            if questions and isinstance(questions[-1], str):
                row.setdefault("instruction", questions[-1].replace("<image>", "").strip())
            self.judge.rollouts.check_columns(row)
            rows.append(row)
        groups = prompt_id if prompt_id and all(prompt_id) else [str(conversation[:-1]) for conversation in messages]
        marks = {"step": None if trainer_state is None else trainer_state.global_step}
        judged = self.judge(completions, rows, groups, name="completion", marks=marks)
        (rewards,) = judged.rewards.values()
        return rewards


@cache
def shared_scorer(model, device, dtype):
    return RememberedScores(load_scorer(model, device=device, dtype=dtype))


class JRMInstructionFollowing(JRMReward):
    dimension = "instruction_following"


class JRMVisualQuality(JRMReward):  # of a model with other dimensions: a class for each
    dimension = "visual_quality"


orms["jrm"] = JRMReward
orms["jrm_instruction_following"] = JRMInstructionFollowing
orms["jrm_visual_quality"] = JRMVisualQuality
