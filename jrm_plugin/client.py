"""A model on another machine, behind `jrm serve`, as a scorer; importing this imports no torch."""

from jrm_plugin.scoring.remote import RewardClient as RewardClient
