// Generated from functions/app.py by `make forwarders`.
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("list-user-batches", {
  path: "/api/call/batches",
  errors: "envelope",
}));
