"""Audio and events leave the disk."""
