// Generated from functions/app.py by `make forwarders`.
import { pauseBatch } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-batch-pause", {
  ending: pauseBatch,
}));
