"""From the journal to the sinks: at least once, in order, each sink by itself."""
