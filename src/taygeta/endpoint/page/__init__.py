"""A page over the endpoint: a chat with the chip beside it, results with plots, the catalogue with its sources."""
