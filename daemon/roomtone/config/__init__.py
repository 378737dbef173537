"""The configuration: read, checked, and as it is in effect."""
