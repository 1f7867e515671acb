"""What the model has to do, how fast this machine does it, and whether it is right: behind `bench` and `doctor`."""
