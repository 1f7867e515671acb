"""A worker process and its client, for programs that must not load MLX themselves: nothing here imports it."""

from .client import Answer, AsyncClient, Client, Image, Region, ServingError
from .frozen import serve_if_worker

__all__ = ["Answer", "AsyncClient", "Client", "Image", "Region", "ServingError", "serve_if_worker"]
