"""What training minimises: one objective a file, and the gradient estimators of those made of samples."""
