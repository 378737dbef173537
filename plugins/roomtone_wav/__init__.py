"""The wav sink."""
