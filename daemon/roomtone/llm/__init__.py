"""What language models are asked, about turns and about conversations."""
