"""The control socket: what a running daemon can be asked."""
