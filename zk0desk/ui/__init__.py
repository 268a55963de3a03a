"""The operator's window: widgets only."""
