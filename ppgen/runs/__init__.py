"""The command line, and the folder that one training run leaves behind."""
