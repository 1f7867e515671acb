"""The service over HTTP, as `pg-mlx serve` offers it: OpenAI's chat completions, regions, and a page. Needs the extra
`pg_mlx[serve]`. docs/server.md describes what a client sees."""
