"""Requests over time on the chips that Taygeta predicts: traffic, schedulers, replicas, metrics."""
