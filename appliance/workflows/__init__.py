"""The workflow language: its models, the loader, dialects, static checks and the compiled form."""
