"""What a token costs: money and power."""
