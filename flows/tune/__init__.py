"""A search over settings as DVC experiments: what to try, running several at once, what came of them."""
