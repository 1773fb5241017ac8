"""Thin adapters to RLHF frameworks: each translates the framework's record into a `Sample` and back."""
