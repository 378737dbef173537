"""The costs of sessions and language models, and their limits."""
