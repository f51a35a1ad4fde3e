"""The web dashboard of saescope: pages for people and the same facts as JSON. It reads records and never tensors."""
