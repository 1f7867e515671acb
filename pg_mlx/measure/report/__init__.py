"""`pg-mlx doctor --report`: every question that only a Mac can answer, asked in one run, as JSON and as a page."""
