"""A small forward engine: float32 numpy on weights that stay in their own type on the memory map."""
