"""vLLM: a JRM checkpoint as a pooling model, whose prefix cache encodes source images and rubrics once a group.

vLLM loads `plugin` by itself (entry point group `vllm.general_plugins`) in each of its processes; nothing needs to be
imported by hand. So this package imports nothing before it is asked for, and vLLM only where it is used.
"""

# What was tried. Models, processors and poolers of vLLM's are written against classes that change between versions, and
# one that changed could give other numbers.
SUPPORTED = ">=0.32,<0.33"
