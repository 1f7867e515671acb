"""The parts of tools/make_bundle.py: what goes into a helper folder, what must be true of it, and how it is signed."""
