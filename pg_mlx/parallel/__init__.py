"""One model on several machines: rank 0 is pg_mlx as it is, the other ranks hold a part of the decoder and obey."""
