"""What is refused before anything is measured or trained."""
