"""What the HTTP server and the worker stand on: requests come from any thread, and one thread that owns MLX answers."""
