// Generated from functions/app.py by `make forwarders`.
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("start-calling", {
  path: "/api/call/start-calling",
  errors: "envelope",
}));
