"""Acting on a model while it runs, and on its weights: steering, ablation, a rank-one edit, a monitor."""
