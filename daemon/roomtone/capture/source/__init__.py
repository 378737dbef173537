"""The capture process: reads one source and writes its audio to a pipe. Standard library only."""
