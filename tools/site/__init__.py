"""The pages of docs/ as a site (mkdocs.yml)."""
