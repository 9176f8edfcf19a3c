// Ends dialing when the app is out of reach: calls the same procedure by the
// project's own PostgREST, with the user's token, and answers as the app does.

/** The fields that an ending function needs of its request, and its answer. */
export interface Ending {
  /** The procedure, in the schema public. */
  procedure: string;
  /** The fields of the body: the procedure's arguments and their types. */
  fields: Record<string, Field>;
  /** The procedure takes no idempotency key: a repeat changes nothing. */
  unkeyed?: boolean;
  /** The message of a 500. */
  failure: string;
  /** The body of a success, from the procedure's row and, if the body tells them, the figures. */
  answer: (row: Row, figures?: Figures) => unknown;
  /** The body of an error. */
  error: (status: number, message: string, details: Row) => unknown;
}

interface Field {
  argument: string;
  type: Type;
  required?: boolean;
}

type Type = "uuid" | "str" | "strs" | "bool" | "seconds" | "time" | "json";

type Row = Record<string, unknown>;

/** Calls that finish, and those of them that the carrier may get only now. */
interface Figures {
  calls_in_progress: number;
  calls_starting: number;
}

const TIME =
  /^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:?[0-9]{2})?$/i;
const UUID = /^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i;
const REASON: Field = { argument: "reason", type: "str" };
const END_CALLS: Field = { argument: "end_calls", type: "bool" };
const WAIT: Field = { argument: "wait_seconds", type: "seconds" };
const MOST_WAIT_S = 30;
/** Between looks the wait for silence doubles, from the first to the last. */
const FIRST_LOOK_S = 0.05;
const LAST_LOOK_S = 0.5;

const BATCH: Field = { argument: "batch_id", type: "uuid", required: true };
const DRY_RUN: Field = { argument: "dry_run", type: "bool" };

function snakeCase(
  procedure: string,
  failure: string,
  fields: Record<string, Field>,
): Ending {
  return {
    procedure,
    fields: { ...fields, reason: REASON },
    failure,
    answer: (row, figures) => ({ ...row, ...figures }),
    error: (_status, message, details) => ({
      success: false,
      error: message,
      ...details,
    }),
  };
}

export const cancelBatch = snakeCase(
  "cancel_batch",
  "Failed to update batch status",
  { batch_id: BATCH, wait_seconds: WAIT, end_calls: END_CALLS },
);
export const pauseBatch = snakeCase(
  "pause_batch",
  "Failed to update batch status",
  { batch_id: BATCH, wait_seconds: WAIT },
);
export const skipContacts = snakeCase(
  "skip_contacts",
  "Failed to skip contacts",
  {
    batch_id: BATCH,
    contact_ids: { argument: "contact_ids", type: "strs" },
    filter: { argument: "filter", type: "json" },
    dry_run: DRY_RUN,
  },
);
export const optOut: Ending = {
  ...snakeCase("opt_out", "Failed to opt out", {
    phone_number: { argument: "phone_number", type: "str", required: true },
    source: { argument: "source", type: "str" },
  }),
  unkeyed: true,
};
export const holdCalls = snakeCase("hold_calls", "Failed to hold calls", {
  campaign_id: { argument: "campaign_id", type: "uuid" },
  agent_mapping_id: { argument: "agent_mapping_id", type: "uuid" },
  from_number: { argument: "from_number", type: "str" },
  whole_agency: { argument: "whole_agency", type: "bool" },
  until: { argument: "until", type: "time" },
  dry_run: DRY_RUN,
});
export const liftHold: Ending = {
  ...snakeCase("lift_hold", "Failed to lift hold", {
    hold_id: { argument: "hold_id", type: "uuid", required: true },
  }),
  unkeyed: true,
};
export const stopBatch: Ending = {
  procedure: "stop_batch",
  fields: {
    batchId: { argument: "batch_id", type: "str", required: true },
    userId: { argument: "user_id", type: "str", required: true },
    skipRemaining: { argument: "skip_remaining", type: "bool" },
    reason: REASON,
    waitSeconds: WAIT,
    endCalls: END_CALLS,
  },
  failure: "Failed to stop calling service or call queue",
  answer: ({ batch_id, status }, figures) => ({
    message: "",
    status: true,
    code: 200,
    errorMessage: "",
    data: {
      batchId: batch_id,
      status,
      ...(figures && {
        callsInProgress: figures.calls_in_progress,
        callsStarting: figures.calls_starting,
      }),
    },
  }),
  error: (status, message) => ({
    message: "",
    status: false,
    code: status,
    errorMessage: message,
    data: {},
  }),
};

/** A refusal, as the app words it. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly details: Row,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

/**
 * The answer to a request for an ending, without the app.
 *
 * @param request The request, whose body was read.
 * @param body The request's body.
 * @param key The Idempotency-Key that the app was given, too: had the app done
 * it, the procedure gives that answer again.
 * @returns null when PostgREST is out of reach, too, or not configured.
 */
export async function end(
  ending: Ending,
  request: Request,
  body: Uint8Array,
  key: string,
  requestId: string,
): Promise<Response | null> {
  const url = Deno.env.get("SUPABASE_URL");
  const apiKey = publishableKey();
  if (!url || !apiKey) return null;
  try {
    const headers = {
      apikey: apiKey,
      authorization: `Bearer ${bearer(request)}`,
      "content-type": "application/json",
      "x-request-id": requestId,
    };
    const { wait_seconds: wait, ...given } = argumentsOf(ending, body);
    const ask = (procedure: string, given: Row) =>
      call(ending, `${url}/rest/v1/rpc/${procedure}`, headers, given);
    const row = await ask(
      ending.procedure,
      ending.unkeyed ? given : { ...given, idempotency_key: key },
    );
    if (!row) return null;
    if (!Object.values(ending.fields).includes(WAIT)) {
      return Response.json(ending.answer(row));
    }
    const { calls_in_progress, calls_starting, ...rest } = row;
    let figures = { calls_in_progress, calls_starting } as Figures;
    if (wait !== undefined) {
      const { batch_id, user_id } = given;
      const look = () => ask("batch_silence", { batch_id, user_id });
      figures = await silence(look, Number(wait)) ?? figures;
    }
    return Response.json(
      ending.answer(rest, wait === undefined ? undefined : figures),
      {
        headers: {
          "x-calls-in-progress": String(figures.calls_in_progress),
          "x-calls-starting": String(figures.calls_starting),
        },
      },
    );
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const { status, message, details, headers } = error;
    return Response.json(ending.error(status, message, details), {
      status,
      headers,
    });
  }
}

/** The seconds that the request asks to wait; 0 when they are not as they should be. */
export function waitOf(ending: Ending, body: Uint8Array): number {
  try {
    return Number(argumentsOf(ending, body).wait_seconds ?? 0);
  } catch {
    return 0;
  }
}

/** The figures when no call can start any more, or after `wait` seconds; null: they cannot be read. */
async function silence(
  look: () => Promise<Row | null>,
  wait: number,
): Promise<Figures | null> {
  const until = performance.now() + wait * 1000;
  for (let pause = FIRST_LOOK_S;; pause = Math.min(2 * pause, LAST_LOOK_S)) {
    // The batch is ended, whatever a look is answered.
    const found = await look().catch(() => null);
    if (!found) return null;
    const { calls_in_progress, calls_starting } = found as unknown as Figures;
    const left = (until - performance.now()) / 1000;
    if (calls_starting === 0 || left <= 0) {
      return { calls_in_progress, calls_starting };
    }
    await new Promise((wake) => setTimeout(wake, Math.min(pause, left) * 1000));
  }
}

async function call(
  ending: Ending,
  url: string,
  headers: Record<string, string>,
  given: Row,
): Promise<Row | null> {
  let answer: Response;
  let found: Row;
  try {
    answer = await fetch(url, {
      method: "POST",
      headers,
      body: JSON.stringify(given),
      signal: AbortSignal.timeout(60_000),
    });
    found = await answer.json();
  } catch {
    return null;
  }
  if (answer.ok) return found;
  throw refusal(ending, answer.status, found);
}

/** PostgREST's error, as the app's. */
function refusal(ending: Ending, status: number, error: Row): Refusal {
  const sqlstate = String(error.code ?? "");
  if (sqlstate.startsWith("PT")) {
    const details = JSON.parse(String(error.details ?? "{}"));
    const headers = headersOf(status, details.retry_after);
    return new Refusal(status, String(error.message), details, headers);
  }
  if (sqlstate.startsWith("PGRST30")) {
    const expired = String(error.message).includes("expired");
    return unauthorized(expired ? "Token has expired" : "Invalid token");
  }
  if (
    /^(PGRST00|08|53|57P)/.test(sqlstate) || [502, 503, 504].includes(status)
  ) {
    return new Refusal(503, "The database is out of reach; try again", {
      code: "database_unavailable",
    }, headersOf(503, 2));
  }
  return new Refusal(500, ending.failure, { code: "internal_error" });
}

function headersOf(status: number, retryAfter?: unknown) {
  const headers: Record<string, string> = {};
  if (status === 401) headers["www-authenticate"] = "Bearer";
  if (retryAfter !== undefined) headers["retry-after"] = String(retryAfter);
  return headers;
}

function unauthorized(message: string): Refusal {
  return new Refusal(401, message, { code: "unauthorized" }, headersOf(401));
}

/** The user's token. PostgREST verifies it. */
function bearer(request: Request): string {
  const authorization = request.headers.get("authorization");
  if (authorization === null) {
    throw unauthorized("Missing authorization header");
  }
  const token = /^bearer +(\S.*)$/i.exec(authorization)?.[1].trim();
  if (!token) throw unauthorized("Invalid authorization header");
  if (token.startsWith("sb_")) {
    throw unauthorized(
      "An API key is not a user token: send the signed-in user's access token",
    );
  }
  // PostgREST would take a secret key, and anybody's anonymous key.
  if (roleOf(token) !== "authenticated") throw unauthorized("Not a user token");
  return token;
}

function roleOf(token: string): unknown {
  try {
    const payload = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    return JSON.parse(atob(payload)).role ?? "authenticated";
  } catch {
    throw unauthorized("Invalid token");
  }
}

/** The procedure's arguments, from the request's body. */
function argumentsOf(ending: Ending, body: Uint8Array): Row {
  const given = parse(body);
  const found: Row = {};
  for (const [name, field] of Object.entries(ending.fields)) {
    const value = given[name];
    if (value === undefined) {
      if (!field.required) continue;
      throw new Refusal(400, `${name} is required`, {
        code: `${name}_required`,
      });
    }
    if (value === null && isNullable(field)) continue;
    const type = typeOf(value);
    if (!TYPES[field.type].includes(type)) {
      throw invalid(
        `Expected \`${named(field)}\`, got \`${type}\` - at \`$.${name}\``,
      );
    }
    if (field.type === "seconds") {
      const seconds = Number(value);
      const beyond = seconds < 0
        ? ">= 0.0"
        : seconds > MOST_WAIT_S
        ? `<= ${MOST_WAIT_S}.0`
        : null;
      if (beyond) {
        throw invalid(`Expected \`float\` ${beyond} - at \`$.${name}\``);
      }
    }
    if (field.type === "uuid" && !UUID.test(String(value))) {
      throw invalid(`Invalid UUID - at \`$.${name}\``);
    }
    if (field.type === "strs") {
      for (const [place, item] of (value as unknown[]).entries()) {
        if (typeof item !== "string") {
          throw invalid(
            `Expected \`str\`, got \`${
              typeOf(item)
            }\` - at \`$.${name}[${place}]\``,
          );
        }
      }
    }
    if (field.type === "time") {
      const [matches, , zone] = TIME.exec(String(value)) ?? [];
      if (!matches || isNaN(Date.parse(String(value)))) {
        throw invalid(`Invalid RFC3339 encoded datetime - at \`$.${name}\``);
      } else if (!zone) {
        throw invalid(
          `Expected \`datetime\` with a timezone component - at \`$.${name}\``,
        );
      }
    }
    found[field.argument] = value;
  }
  return found;
}

/** The types that a field takes. */
const TYPES: Record<Type, string[]> = {
  uuid: ["str"],
  str: ["str"],
  strs: ["array"],
  bool: ["bool"],
  seconds: ["int", "float"],
  time: ["str"],
  json: ["object", "array", "str", "bool", "int", "float"],
};

/** Whether null is as if the field were left out. */
function isNullable({ type, required }: Field): boolean {
  return type !== "bool" && !required;
}

/** The type of a field, as the app's messages name it. */
function named(field: Field): string {
  const names: Record<string, string> = {
    seconds: "float",
    strs: "array",
    time: "datetime",
  };
  const name = names[field.type] ?? field.type;
  return isNullable(field) ? `${name} | null` : name;
}

function parse(body: Uint8Array): Row {
  let given: unknown;
  try {
    given = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    throw invalid("Body must be a JSON object");
  }
  const type = typeOf(given);
  if (type !== "object") throw invalid(`Expected \`object\`, got \`${type}\``);
  return given as Row;
}

function invalid(message: string): Refusal {
  return new Refusal(400, message, { code: "invalid_body" });
}

/** The type of a JSON value, as the app's messages name it. */
function typeOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "number") {
    return Number.isInteger(value) ? "int" : "float";
  }
  return { string: "str", boolean: "bool" }[typeof value as string] ?? "object";
}

/** The project's key for browsers: one of the new ones, or the former one. */
function publishableKey(): string | undefined {
  try {
    const keys = JSON.parse(Deno.env.get("SUPABASE_PUBLISHABLE_KEYS") ?? "{}");
    return keys.default ?? Object.values(keys)[0] ??
      Deno.env.get("SUPABASE_ANON_KEY");
  } catch {
    return Deno.env.get("SUPABASE_ANON_KEY");
  }
}
