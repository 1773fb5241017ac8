"""The paper's Table 4 in miniature: a flow-matching image editor trained by Flow-GRPO, with a JRM as its only reward.

Read the files in this order: `data`, `editor`, `pretrain`, `sampler`, `reward`, `grpo`, `measure`, then the commands:
`__main__` (the table and the page), `hacking` (a hole in the reward, seen and mended) and `cost`.
"""
