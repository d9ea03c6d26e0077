"""What a part is taught: a loss over windows of text."""
