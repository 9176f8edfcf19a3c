// An app with supabase-js, driven by lines of JSON on stdin: each is a call of
// supabase.functions.invoke, whose outcome is printed as a line of JSON.
// The argument is the module with the function of supabase/README.md, which says what the
// app shows of an error.

import { createClient, FunctionsHttpError } from "@supabase/supabase-js";
import { lines } from "./lines.ts";

interface Call {
  url: string;
  key: string;
  token: string;
  name: string;
  method: "GET" | "POST" | "DELETE";
  headers: Record<string, string>;
  json?: Record<string, unknown>;
  text?: string;
  form?: Record<string, string>;
  file?: { name: string; text: string };
}

const { messageOf } = await import(Deno.args[0]);
console.log("ready");
for await (const line of lines(Deno.stdin.readable)) {
  console.log(JSON.stringify(await invoke(JSON.parse(line))));
}

async function invoke(call: Call) {
  const accessToken = () => Promise.resolve(call.token);
  const supabase = createClient(call.url, call.key, { accessToken });
  const { data, error, response } = await supabase.functions.invoke(call.name, {
    method: call.method,
    headers: call.headers,
    body: bodyOf(call),
  });
  return {
    data,
    kind: error?.name ?? null,
    shown: error && await messageOf(error),
    is_http_error: error instanceof FunctionsHttpError,
    status: response?.status ?? null,
    headers: Object.fromEntries(response?.headers ?? []),
  };
}

function bodyOf({ json, text, form, file }: Call) {
  if (!form) return json ?? text;
  const body = new FormData();
  for (const [name, value] of Object.entries(form)) body.append(name, value);
  if (file) body.append("file", new File([file.text], file.name));
  return body;
}
