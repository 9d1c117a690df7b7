"""Surgery: edits as values, the overlay that shows them, and the writer that makes them files."""
