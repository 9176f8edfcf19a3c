// Generated from functions/app.py by `make forwarders`.
import { skipContacts } from "../_shared/ending.ts";
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-batch-skip", {
  ending: skipContacts,
}));
