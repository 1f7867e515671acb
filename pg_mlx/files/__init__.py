"""File formats: JSON, safetensors, npz, folders. Nothing here knows the name of a tensor."""
