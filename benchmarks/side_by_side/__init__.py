"""pg_mlx beside other programs: the same questions in turn, and a page of the results."""
