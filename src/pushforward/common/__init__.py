"""What every room uses: files, text, errors. Standard library only."""
