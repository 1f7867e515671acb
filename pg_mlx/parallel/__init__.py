"""One model on several machines: rank 0 does what one process does, the others compute their parts of the decoder."""
