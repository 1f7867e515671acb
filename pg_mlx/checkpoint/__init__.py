"""Files to arrays and back: layouts, readers, the hub, and loading."""
