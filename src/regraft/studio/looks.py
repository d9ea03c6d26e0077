"""How a page looks: its theme, its few styles, and how it says what was refused."""

from __future__ import annotations

from dataclasses import dataclass

from nicegui import ui

STYLE = """
.nicegui-content { padding: 12px; max-width: 1500px; margin: 0 auto; }
.rg-wide { flex: 1 1 620px; min-width: 0; } .rg-side { flex: 1 1 330px; min-width: 0; max-width: 480px; }
.rg-soft { opacity: .72; font-size: 13px; overflow-wrap: anywhere; }
.rg-scroll { width: 100%; overflow-x: auto; }
.rg-site { font-weight: 600; font-size: 17px; }
.rg-mono, .rg-text { font-family: ui-monospace, monospace; font-size: 13px; white-space: pre-wrap; }
.rg-text { overflow-wrap: anywhere; min-height: 1.4em; }
.rg-chips .q-btn { white-space: pre; }
.rg-numbers td { padding: 1px 10px 1px 0; font-variant-numeric: tabular-nums; }
.rg-numbers td:last-child { padding-right: 0; }
.rg-numbers td:last-child * { word-break: keep-all; overflow-wrap: normal; }
.rg-changed { font-weight: 600; white-space: nowrap; }
.rg-change { font-size: 13px; overflow-wrap: anywhere; }
.rg-figures { min-width: 0; }
@media (max-width: 700px) { .rg-wide, .rg-side { flex-basis: 100%; max-width: 100%; } }
"""


@dataclass
class Look:
    """One browser's theme."""

    dark: bool = False

    def say(self, sentence: str) -> None:
        """Say what was refused, or what happened."""
        ui.notify(sentence, type="warning", multi_line=True, timeout=8000, close_button="Close")
