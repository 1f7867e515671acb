"""`pg-mlx worker`: the service behind stdin and stdout (docs/protocol.md). Nothing is imported here: clients and the
supervisor use the framing without MLX."""
