"""What several tests need: models, checkpoints, pictures, servers, made small."""
