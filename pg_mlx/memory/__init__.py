"""Memory: what a model will take, what it holds, and sizes as people write them. This file imports nothing."""
