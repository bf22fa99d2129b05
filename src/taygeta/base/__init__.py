"""Units, errors and the names of formats; imports nothing else of Taygeta."""
