"""The v3 streaming protocol: messages and parameters, without I/O."""
