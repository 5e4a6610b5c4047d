"""Records `nrl-patches demo` on transformers 5.5.0 for README: what the command prints on a terminal, as a picture.

Run by hand, when the demo or what it shows has changed: python tests/record_demo.py
"""

import io
import os
import re
import sys

from releases import BYTECODE, FOLDER, build
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from standins import ROOT
from terminal import run_on_terminal

from nrl_patches.matrix.environments import variables

FILE = ROOT / "nrl_patches" / "docs" / "demo.svg"
RELEASE = "transformers==5.5.0"
COLUMNS = 100
THEME = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255)],
)
"""A dark window, which stands out from a light page and from a dark one."""

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"


def picture(printed):
    """Return what a terminal showed as an SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(printed), highlight=False)
    svg = console.export_svg(title=RELEASE.replace("==", " "), theme=THEME, unique_id="demo")
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family:[^;]*;", f"font-family: {FONTS};", svg)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def main():
    environ = variables([*build(RELEASE, FOLDER), ROOT], os.environ) | BYTECODE | {"TERM": "xterm-256color"}
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        environ.pop(name, None)
    command = [sys.executable, "-P", "-m", "nrl_patches", "demo"]
    code, printed = run_on_terminal(command, COLUMNS, environ, cwd=ROOT / "tests")
    if code:
        sys.exit(printed)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(picture(f"$ nrl-patches demo\n{printed}"), encoding="utf-8")


if __name__ == "__main__":
    main()
