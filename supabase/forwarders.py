"""Write supabase/functions/<name>/index.ts for each function of the app: python supabase/forwarders.py [folder]

A function is called like its handler, with dashes. The path after its first parameter is passed on as it comes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from functions._shared.envelope import error_envelope
from functions._shared.http import EdgeFunction
from functions.app import ROUTES

SERVED = ("/functions/v1/", "/api/call/")
"""Under these paths are the functions."""
ENDINGS = {
    "calls-batch-cancel": "cancelBatch",
    "calls-batch-pause": "pauseBatch",
    "calls-batch-skip": "skipContacts",
    "calls-hold": "holdCalls",
    "calls-hold-lift": "liftHold",
    "calls-opt-out": "optOut",
    "stop-calling": "stopBatch",
}
"""The functions that work without the app, too (_shared/ending.ts): what ends dialing, and the lifting of a hold."""
HEADER = "// Generated from functions/app.py by `make forwarders`.\n"


def forwarders() -> dict[str, str]:
    """Each function's name and its index.ts."""
    found = {}
    for route in ROUTES:
        function = route.endpoint
        if isinstance(function, EdgeFunction) and route.path.startswith(SERVED):
            name = function.handler.__name__.replace("_", "-")
            path = route.path.partition("/{")[0]
            options = []
            if path != f"/functions/v1/{name}":
                options.append(f'  path: "{path}",\n')
            if function.errors is error_envelope:
                options.append('  errors: "envelope",\n')
            if name in ENDINGS:
                options.append(f"  ending: {ENDINGS[name]},\n")
            found[name] = _index(name, "".join(options))
    return found


def _index(name: str, options: str) -> str:
    ending = f'import {{ {ENDINGS[name]} }} from "../_shared/ending.ts";\n' if name in ENDINGS else ""
    given = f'"{name}", {{\n{options}}}' if options else f'"{name}"'
    return f'{HEADER}{ending}import {{ forward }} from "../_shared/forward.ts";\n\nDeno.serve(forward({given}));\n'


def write(folder: Path) -> None:
    """Write them all into the folder, and remove those that were generated for functions that are no more."""
    written = forwarders()
    for name, text in written.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "index.ts").write_text(text)
    for index in folder.glob("*/index.ts"):
        if index.parent.name not in written and index.read_text().startswith(HEADER):
            shutil.rmtree(index.parent)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "functions")
