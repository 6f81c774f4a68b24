"""The torch modules, one idea per file. Nothing outside `networks` and `training` imports torch."""
