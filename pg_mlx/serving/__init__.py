"""One model for many callers: a service that owns MLX on a thread of its own (`service`), and its two doors, a worker
process that speaks JSON lines (`worker`) and an HTTP server (`http`). Nothing is imported here: `pg_mlx.client` needs
the worker's framing alone."""
