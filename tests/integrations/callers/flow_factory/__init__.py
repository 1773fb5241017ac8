"""The part of Flow-Factory that a reward stands on, written anew after its public behaviour; it needs GPUs and more."""
