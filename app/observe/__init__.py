"""The server seen from outside: request ids, headers and logs (`watch`, `logs`), metrics, and whether it is well."""
