"""Questions to language models, about turns and about conversations."""
