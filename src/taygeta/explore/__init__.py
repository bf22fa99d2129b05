"""Design spaces: the best deployment, fronts, sweeps, sensitivities."""
