// A stand-in for a Supabase project's functions: serves each folder of
// supabase/functions at /functions/v1/<name>, where the function itself sees
// /<name>, and tells them the secrets.
//
// Prints `ready <port>`. A line of JSON on stdin sets secrets, or with null takes
// them away; `set` is printed then. It is not Supabase: all functions are in one
// process, no limits, no token is verified before the function (verify_jwt = false).

import { lines } from "./lines.ts";

type Handler = (request: Request) => Response | Promise<Response>;

const folder = new URL("../../supabase/functions/", import.meta.url);
const serve = Deno.serve;
const functions = new Map<string, Handler>();

for (const { name } of Deno.readDirSync(folder)) {
  if (name.startsWith("_")) continue;
  const capture = (handler: Handler) => functions.set(name, handler);
  Object.assign(Deno, { serve: capture });
  await import(new URL(`${name}/index.ts`, folder).href);
}

const gateway = serve({
  hostname: "127.0.0.1",
  port: 0,
  onListen: ({ port }) => console.log(`ready ${port}`),
}, (request) => {
  const url = new URL(request.url);
  // /unstripped/…: where the function sees the whole path.
  const [, unstripped, path, name] =
    /^(\/unstripped)?\/functions\/v1(\/([^/]+).*)$/.exec(url.pathname) ?? [];
  const handler = functions.get(name);
  if (!handler) return new Response("no such function", { status: 404 });
  url.pathname = unstripped ? `/functions/v1${path}` : path;
  return handler(new Request(url, request));
});

for await (const line of lines(Deno.stdin.readable)) {
  for (const [name, value] of Object.entries(JSON.parse(line))) {
    if (value === null) Deno.env.delete(name);
    else Deno.env.set(name, String(value));
  }
  console.log("set");
}
await gateway.shutdown();
