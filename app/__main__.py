"""`saescope` from its first line: hears a Ctrl-C while the command's modules are still being loaded."""

import sys


def main() -> int:
    """Runs one command; returns its exit code."""
    try:
        from sae_core.progress import interrupts_heard

        with interrupts_heard():
            from app import cli
    except KeyboardInterrupt:
        print("saescope: stopped.", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
