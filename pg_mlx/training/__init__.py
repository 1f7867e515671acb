"""Fine-tuning: batches, the loss and its gradients, steps of an optimizer. `import pg_mlx` does not load it."""
