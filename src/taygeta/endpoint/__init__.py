"""An OpenAI-compatible endpoint whose every token leaves when the simulated fleet would have emitted it."""
