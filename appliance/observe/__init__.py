"""Logs, metrics, the stall watchdog and the service manager's notifications: every name in one place."""
