// Generated from functions/app.py by `make forwarders`.
import { cancelBatch } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-batch-cancel", {
  ending: cancelBatch,
}));
