"""Tokenizers: trained on chunks that cross words, measured in bytes, transplanted into models."""
