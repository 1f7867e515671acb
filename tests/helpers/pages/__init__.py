"""Running the code on the pages: what the blocks are, a folder to run them in, and a small shell."""
