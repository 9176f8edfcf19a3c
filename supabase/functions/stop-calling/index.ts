// Generated from functions/app.py by `make forwarders`.
import { stopBatch } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("stop-calling", {
  path: "/api/call/stop-calling",
  errors: "envelope",
  ending: stopBatch,
}));
