// Generated from functions/app.py by `make forwarders`.
import { optOut } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-opt-out", {
  ending: optOut,
}));
