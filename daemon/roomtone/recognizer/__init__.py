"""The recognizer on this machine: the v3 protocol on loopback, with an engine that needs no account."""
