"""The rooms' audio on disk: segment files, and the queue that all readers share."""
