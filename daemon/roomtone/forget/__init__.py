"""Removing a stretch of time everywhere, and checking that it is gone."""
