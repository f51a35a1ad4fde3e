"""The pages and JSON of what a feature does to what the model says: `why` and `steer`."""
