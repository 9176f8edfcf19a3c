// Generated from functions/app.py by `make forwarders`.
import { holdCalls } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-hold", {
  ending: holdCalls,
}));
