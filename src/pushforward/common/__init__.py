"""What every room uses: files, locks, text, numbers as text, errors, registries. Standard library only."""
