// Generated from functions/app.py by `make forwarders`.
import { liftHold } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-hold-lift", {
  ending: liftHold,
}));
