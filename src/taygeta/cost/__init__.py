"""What operations, steps and services cost."""
