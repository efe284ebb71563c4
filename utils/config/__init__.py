"""Command lines: the parser, every flag, and the typed settings that are made of them. Nothing below knows argparse."""
