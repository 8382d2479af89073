"""Plans: which layout and schedule each layer gets. A plan decides and never runs."""
