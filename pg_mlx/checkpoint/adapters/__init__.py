"""LoRA adapters (PEFT, mlx-vlm): read, checked, and put onto a checkpoint as it is read."""
