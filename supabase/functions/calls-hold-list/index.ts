// Generated from functions/app.py by `make forwarders`.
import { forward } from "../_shared/forward.ts";

Deno.serve(forward("calls-hold-list"));
