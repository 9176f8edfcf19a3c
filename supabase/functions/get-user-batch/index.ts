// Generated from functions/app.py by `make forwarders`.
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("get-user-batch", {
  path: "/api/call/batch-details",
  errors: "envelope",
}));
