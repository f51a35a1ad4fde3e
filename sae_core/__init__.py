"""saescope's core: text to activations to features to records. Never imports `app`; loads nothing at import."""
