"""Post-training for language models, milled in stages. Import the module you need by its full name."""
