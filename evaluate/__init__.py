"""What a fitted density is worth: likelihood, baselines, samples, latents, pictures."""
