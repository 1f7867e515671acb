"""One model, many askers: a service that owns MLX on a thread of its own (`service`), and a worker process around it
that speaks JSON lines (`worker`, `protocol`). Nothing is imported here: `pg_mlx.client` needs the protocol alone."""
