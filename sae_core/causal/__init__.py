"""What a feature does to what the model says: attribution, ablation, steering."""
