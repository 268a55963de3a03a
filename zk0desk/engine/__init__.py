"""The training engine of a packaged application: torch, LeRobot, flwr and what they need, fetched when it is wanted.

Standard library and what all of zk0desk shares; no Qt, and nothing of the engine itself. In a checkout, or after
`pip install zk0desk[engine]`, the environment is the engine, and nothing is fetched.
"""
