"""Status, metrics, health, logs, and the service manager."""
