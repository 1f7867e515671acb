"""How the bundled checkpoint was made, and its scores: see README.md."""
