"""From a source to the spool: the child process, its reader, and the audio on disk."""
