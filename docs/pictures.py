"""Take the pictures of report and view that these pages show: ``make pictures``.

It needs Chromium, and the results of ``make demo``.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.browser import CHROMIUM, Browser, browser

READY = "document.body.dataset.ready === 'yes'"


def report(tab: Browser, results: Path) -> None:
    """The report from its top to its first scan."""
    tab.show(960, 1500)
    tab.open((results / "report.html").as_uri())


def report_on_a_phone(tab: Browser, results: Path) -> None:
    """The report in the dark, at the size of a phone."""
    tab.show(390, 844, dark=True)
    tab.open((results / "report.html").as_uri())


def view(tab: Browser, results: Path) -> None:
    """Label and prediction of the first scan side by side, in three planes."""
    tab.show(1200, 640)
    tab.open((results / "view.html").as_uri())
    tab.wait_for(READY)


def view_as_volume(tab: Browser, results: Path) -> None:
    """The prediction of the first scan as a volume."""
    view(tab, results)
    tab.show(800, 640, dark=True)
    tab.evaluate("document.querySelector('input[value=volume]').click()")
    tab.evaluate("document.querySelector('input[value=prediction]').click()")


PICTURES: dict[str, Callable[[Browser, Path], None]] = {
    "report.png": report,
    "report_phone.png": report_on_a_phone,
    "view.png": view,
    "view_volume.png": view_as_volume,
}


def main(results: Path, output: Path) -> None:
    """Take all pictures of a folder of results."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as tab:
        for name, show in PICTURES.items():
            show(tab, results.resolve())
            (output / name).write_bytes(tab.png())
            print(output / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description="Take the pictures of these pages.")
    parser.add_argument("results", type=Path, help="folder with report.html and view.html")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the pictures")
    args = parser.parse_args()
    if CHROMIUM is None:
        parser.error("no chromium in PATH. Install it (Debian's package chromium).")
    for name in ("report.html", "view.html"):
        if not (args.results / name).is_file():
            parser.error(f"{args.results}: has no {name}. Run `make demo`, or give a folder that test.py wrote.")
    main(args.results, args.output)
