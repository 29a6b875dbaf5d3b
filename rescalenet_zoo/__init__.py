"""The start of the command ``rescalenet``: a package whose name no module of a user has."""
