// Passes what a function of the project is asked on to the app, and the app's
// answer back: Supabase's edge runtime runs Deno, and the app is Python.
// Web APIs alone: nothing to fetch or to update.

import { end, type Ending, waitOf } from "./ending.ts";

/** The body of an error: `{success, error, code}`, or stop-calling's envelope. */
export type Errors = "plain" | "envelope";

/**
 * The headers of a request that the app reads. No other leaves the project, no
 * cookie and no API key.
 */
const REQUEST_HEADERS = [
  "accept",
  "authorization",
  "content-type",
  "idempotency-key",
  "traceparent",
  "tracestate",
  "webhook-id",
  "webhook-signature",
  "webhook-timestamp",
  "x-client-info",
  "x-ultravox-webhook-signature",
  "x-ultravox-webhook-timestamp",
];

/** Headers about a connection, and not about the answer that comes by it. */
const HOP_BY_HOP = [
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
];

/** The header of a forwarded request. A request that arrives with it goes round in a circle. */
const FORWARDED = "x-lastcall-forwarded";

/** As the app has it. */
const REQUEST_ID = /^[A-Za-z0-9._:/+=-]{1,128}$/;

/** Supabase waits 150 seconds for an answer to begin; ours comes before that. */
const TIMEOUT_S = 140;

/** An ending is not kept waiting: this long after the request (and the wait that it
 * asks for), it is done otherwise. */
const ENDING_TIMEOUT_S = 20;

/** As in the app: an ending has a small body. */
const MAX_ENDING_BYTES = 65_536;

/** The differences of one function from the others. */
interface Options {
  /** Where the app has the function. */
  path?: string;
  /** The body of an error that the forwarder makes. */
  errors?: Errors;
  /** How to end a batch when the app is out of reach. */
  ending?: Ending;
}

/** Why a request has no answer of the app. */
class Failure extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    /** For the log. */
    readonly reason = "",
  ) {
    super(message);
  }
}

/**
 * The handler of a function: passes each request on to the app, which is at the
 * secret LASTCALL_URL. Method, query, what follows the function's name in the
 * path, and the body, as it comes. A client that goes away ends it there, too.
 *
 * What the app does not answer is answered 500 `not_configured` (LASTCALL_URL,
 * LASTCALL_TIMEOUT_S), 502 `app_unavailable` (out of reach, or it redirects),
 * 504 `app_timeout` (no answer begun LASTCALL_TIMEOUT_S seconds after the
 * request) or 508 `forwarding_loop`.
 *
 * An ending (cancel, stop, pause) does not need the app: when it is out of reach,
 * or answers 502 to 504, the procedure is called by the project's PostgREST. Both
 * get one Idempotency-Key, so that the batch is ended once.
 *
 * @param name The function's name.
 */
export function forward(
  name: string,
  { path = `/functions/v1/${name}`, errors = "plain", ending }: Options = {},
): (request: Request) => Promise<Response> {
  return async (request) => {
    const given = request.headers.get("x-request-id") ?? "";
    const requestId = REQUEST_ID.test(given) ? given : crypto.randomUUID();
    try {
      return ending && request.method === "POST"
        ? await passOrEnd(request, name, path, requestId, ending)
        : await pass(request, name, path, requestId);
    } catch (error) {
      if (request.signal.aborted) {
        return new Response(null, { status: 499 }); // nobody is left to see it
      }
      const failure = failureOf(error);
      log(failure, name, requestId);
      // A browser whose preflight fails does not show what was the matter.
      return isPreflight(request)
        ? allow(request, requestId)
        : reply(failure, errors, requestId);
    }
  };
}

function failureOf(error: unknown): Failure {
  if (error instanceof Failure) return error;
  const reason = error instanceof Error ? error.name : "";
  return new Failure(
    500,
    "internal_error",
    "Failed to forward the request",
    reason,
  );
}

/** The app's answer to an ending, or else the database's, or else why there is none. */
async function passOrEnd(
  request: Request,
  name: string,
  path: string,
  requestId: string,
  ending: Ending,
): Promise<Response> {
  const key = request.headers.get("idempotency-key") ?? crypto.randomUUID();
  const body = await bodyOf(request);
  const headers = new Headers(request.headers);
  headers.set("idempotency-key", key);
  const again = new Request(request.url, {
    method: "POST",
    headers,
    body,
    signal: request.signal,
  });
  let answer: Response | undefined;
  let failure: Failure | undefined;
  try {
    const timeout = ENDING_TIMEOUT_S + waitOf(ending, body);
    answer = await pass(again, name, path, requestId, timeout);
    if (![502, 503, 504].includes(answer.status)) return answer;
  } catch (error) {
    failure = failureOf(error);
    if (request.signal.aborted || failure.status === 404) throw error;
  }
  const ended = await end(ending, request, body, key, requestId);
  if (ended) {
    await answer?.body?.cancel();
    const reason = new Failure(
      ended.status,
      failure?.code ?? `app_answered_${answer?.status}`,
      "",
      failure?.reason,
    );
    log(reason, name, requestId, "answered without the app");
    for (const [header, value] of Object.entries(ownHeaders(requestId))) {
      ended.headers.set(header, value);
    }
    ended.headers.set("cache-control", "no-store");
    return ended;
  }
  if (answer) return answer;
  throw failure;
}

async function bodyOf(request: Request): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of request.body ?? []) {
    size += part.length;
    if (size > MAX_ENDING_BYTES) {
      throw new Failure(
        413,
        "body_too_large",
        `Body must have at most ${MAX_ENDING_BYTES} bytes`,
      );
    }
    parts.push(part);
  }
  return new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
}

async function pass(
  request: Request,
  name: string,
  path: string,
  requestId: string,
  atMostS = Infinity,
): Promise<Response> {
  const url = appUrl(request, name, path);
  const seconds = Math.min(timeoutS(), atMostS);
  const stop = new AbortController();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    stop.abort();
  }, seconds * 1000);
  const leave = () => stop.abort();
  request.signal.addEventListener("abort", leave);
  if (request.signal.aborted) leave();
  let answer: Response;
  try {
    answer = await fetch(url, {
      method: request.method,
      headers: requestHeaders(request, requestId),
      body: request.body,
      redirect: "manual",
      signal: stop.signal,
    });
  } catch (error) {
    throw late
      ? new Failure(
        504,
        "app_timeout",
        `The service did not answer within ${seconds} seconds${next(request)}`,
      )
      : new Failure(
        502,
        "app_unavailable",
        `The service is out of reach${next(request)}`,
        reason(error),
      );
  } finally {
    // An answer that has begun has no limit in time, and ends with its reader:
    // the signal of a request, in some releases of Deno, aborts at success, too.
    clearTimeout(timer);
    request.signal.removeEventListener("abort", leave);
  }
  if (answer.status >= 300 && answer.status < 400 && answer.status !== 304) {
    await answer.body?.cancel();
    throw new Failure(
      502,
      "app_unavailable",
      "The service redirects: LASTCALL_URL must be where it leads",
    );
  }
  return new Response(answer.body, {
    status: answer.status,
    headers: responseHeaders(answer.headers),
  });
}

/** The advice after an error that leaves the outcome open. */
function next(request: Request): string {
  return ["GET", "HEAD", "OPTIONS"].includes(request.method)
    ? "; try again"
    : "; whether this was done is not known: repeat it with the same Idempotency-Key";
}

/** Where in the app a request goes. */
function appUrl(request: Request, name: string, path: string): string {
  if (request.headers.has(FORWARDED)) {
    throw new Failure(
      508,
      "forwarding_loop",
      "LASTCALL_URL leads back to this project: it must be the app's address",
    );
  }
  const app = (Deno.env.get("LASTCALL_URL") ?? "").trim().replace(/\/+$/, "");
  if (!/^https?:\/\/[^/?#@]+(\/[^?#]*)?$/.test(app) || !URL.canParse(app)) {
    throw new Failure(
      500,
      "not_configured",
      app
        ? "LASTCALL_URL must be an http(s) URL"
        : "No app is configured: set the secret LASTCALL_URL",
    );
  }
  const { pathname, search } = new URL(request.url);
  // Hosted functions see the path without /functions/v1, not so everywhere.
  for (const own of [`/${name}`, `/functions/v1/${name}`]) {
    if (pathname === own || pathname.startsWith(`${own}/`)) {
      return app + path + pathname.slice(own.length) + search;
    }
  }
  throw new Failure(404, "no_such_function", "No function at this path");
}

function timeoutS(): number {
  const given = Deno.env.get("LASTCALL_TIMEOUT_S") || String(TIMEOUT_S);
  if (!/^[1-9][0-9]{0,2}$/.test(given)) {
    throw new Failure(
      500,
      "not_configured",
      "LASTCALL_TIMEOUT_S must be a whole number from 1 to 999",
    );
  }
  return Number(given);
}

function requestHeaders(request: Request, requestId: string): Headers {
  const headers = new Headers({
    // Or fetch unpacks the answer, and its length and encoding are not true.
    "accept-encoding": "identity",
    "x-request-id": requestId,
    [FORWARDED]: "1",
  });
  for (const name of REQUEST_HEADERS) {
    const value = request.headers.get(name);
    if (value !== null) headers.set(name, value);
  }
  return headers;
}

function responseHeaders(given: Headers): Headers {
  const headers = new Headers(given);
  const named = (given.get("connection") ?? "").split(",");
  for (const name of [...HOP_BY_HOP, ...named.map((name) => name.trim())]) {
    if (name) headers.delete(name);
  }
  return headers;
}

function reply(failure: Failure, errors: Errors, requestId: string): Response {
  const { status, code, message } = failure;
  const body = errors === "plain" ? { success: false, error: message, code } : {
    message: "",
    status: false,
    code: status,
    errorMessage: message,
    data: {},
  };
  const headers = { ...ownHeaders(requestId), "cache-control": "no-store" };
  return Response.json(body, { status, headers });
}

function isPreflight(request: Request): boolean {
  return request.method === "OPTIONS" &&
    request.headers.has("access-control-request-method");
}

function allow(request: Request, requestId: string): Response {
  const asked = (what: string) =>
    request.headers.get(`access-control-request-${what}`) ?? "";
  const headers = {
    ...ownHeaders(requestId),
    "access-control-allow-methods": asked("method"),
    "access-control-allow-headers": asked("headers"),
  };
  return new Response(null, { status: 204, headers });
}

function ownHeaders(requestId: string): Record<string, string> {
  return {
    "access-control-allow-origin": "*",
    "access-control-expose-headers":
      "X-Request-Id, Retry-After, X-Calls-In-Progress, X-Calls-Starting",
    "x-request-id": requestId,
  };
}

/** Why fetch failed, without the URL that it names: one may hold a secret. */
function reason(error: unknown): string {
  if (!(error instanceof Error)) return "";
  const cause = error.cause instanceof Error ? error.cause : error;
  return / client error .*$/.exec(cause.message)?.[0].trim() ?? error.name;
}

function log(
  failure: Failure,
  name: string,
  requestId: string,
  message = "request not forwarded",
): void {
  console.error(JSON.stringify({
    level: "error",
    message,
    function: name,
    request_id: requestId,
    status: failure.status,
    code: failure.code,
    reason: failure.reason,
  }));
}
