# A Linux server that computes on the CPU. On a Mac, containers have no GPU: use the launchd example there instead.
#
#   docker build -t pg-mlx .
#   docker run -p 127.0.0.1:8080:8080 -e PG_MLX_API_KEY=secret -v /path/to/models:/models:ro \
#       pg-mlx serve --host 0.0.0.0 --model /models/pg2-4bit
FROM python:3.11-slim

# MLX for Linux computes through a BLAS. This one is several times as fast as the one that it would get otherwise.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml MANIFEST.in README.md LICENSE /source/
COPY pg_mlx /source/pg_mlx
RUN python -m pip install --no-cache-dir "/source[serve]" && rm -rf /source

RUN useradd --create-home pg_mlx
USER pg_mlx
WORKDIR /home/pg_mlx
EXPOSE 8080
HEALTHCHECK --interval=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
ENTRYPOINT ["pg-mlx"]
# Without arguments: the bundled demo. It needs a key, since it listens on every address of the container.
CMD ["serve", "--host", "0.0.0.0"]
