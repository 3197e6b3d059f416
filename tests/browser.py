"""A headless Chromium, for tests that look at pages as people see them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from services import absent

PATIENCE_MS = 60_000
"""Of the page's own time: it ends when the page has nothing more to wait for."""


class Browser:
    """Opens pages; what is on them comes back as the text of their document, and as a picture."""

    def __init__(self) -> None:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if found is None:
            absent("chromium", "Chromium is not installed (apt-get install chromium)")
        self._program = str(found)

    def open(self, url: str, picture: Path, size: tuple[int, int] = (2000, 1200)) -> str:
        """The document at ``url`` once it is drawn; ``picture`` gets what it looks like."""
        with tempfile.TemporaryDirectory(prefix="lora-lab-browser-", ignore_cleanup_errors=True) as profile:
            done = subprocess.run(
                [
                    self._program,
                    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
                    f"--user-data-dir={profile}",
                    f"--window-size={size[0]},{size[1]}",
                    f"--virtual-time-budget={PATIENCE_MS}",
                    f"--screenshot={picture}",
                    "--dump-dom",
                    url,
                ],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                env=os.environ | {"HOME": profile},
            )
        assert done.returncode == 0 and picture.is_file(), done.stderr[-2000:]
        return done.stdout
