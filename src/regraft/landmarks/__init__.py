"""Published figures of known models, beside which a result can be put."""
