"""Running workflows: the pure core, the executor, timers, and the isolation of actions."""
