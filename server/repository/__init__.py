"""The model repository: archives in, checked models out. Imports no framework and no code from archives.

Nothing is imported here: a worker needs one module of this folder, and starts sooner without the others.
"""
