"""A whole federation on this computer: made, guarded, and taken away again. Free of Qt."""
