"""What sessions and language models may cost, and what they have cost."""
