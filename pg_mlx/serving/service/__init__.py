"""The core that both doors stand on: requests come in from any thread, one thread owns MLX and answers them."""
