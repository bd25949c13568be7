"""`acdc models`: lists the packaged models and the supported architectures."""

import argparse

HELP = "list the packaged models and the supported architectures"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> None:
    from acdc.architectures import ARCHITECTURES
    from acdc.packaged import PACKAGED
    from acdc.shipped import SHIPPED

    for name, packaged in {**PACKAGED, **SHIPPED}.items():
        print(f"{name:<12} {packaged.description}")
    print(f"\nor a hub name or local folder of one of these architectures: {', '.join(ARCHITECTURES)}")
