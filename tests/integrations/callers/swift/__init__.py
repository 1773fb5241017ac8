"""The part of ms-swift that a reward plug-in stands on, written anew after its public behaviour."""
