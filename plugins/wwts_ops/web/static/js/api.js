// Talks to the server: JSON in, JSON out, errors as ApiError with a sentence for the person.

/** The plugin's root (".../wwts/"), wherever Airflow is mounted. */
export const ROOT = new URL("../../", import.meta.url);

const PATIENCE_MS = 20_000;
// Of our own checks of a request's body: the same bytes will never do.
const FINAL = new Set(["bad_body", "too_large", "not_json"]);
const signedOut = new Set();
const otherPerson = new Set();
let speaker = null;

/** What the server or the network refused. `status` 0: nobody answered. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }

  /** Worth trying again later with the same bytes. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }

  /** Refused for what it says, whoever sends it and whenever. */
  get final() {
    return FINAL.has(this.code);
  }
}

/** Calls `callback(out)` with true when the session has ended, with false when the server knows us again. */
export function onSignedOut(callback) {
  signedOut.add(callback);
  return () => signedOut.delete(callback);
}

/** `callback()` when a request was refused because somebody else has signed in since this page was opened. */
export function onOtherPerson(callback) {
  otherPerson.add(callback);
  return () => otherPerson.delete(callback);
}

/** From now on whatever is written is written in this person's name, or not at all. */
export function speakFor(user) {
  speaker = user;
}

export const pictureUrl = (content) => new URL(`pictures/${encodeURIComponent(content)}`, ROOT).href;
export const originalUrl = (content) => new URL(`originals/${encodeURIComponent(content)}`, ROOT).href;

/** Address of a path below the root, e.g. `url("reports/2026-11-22/")`. */
export const url = (path) => new URL(path.replace(/^\/+/, ""), ROOT).href;

/** `{dates: ["a"], labels: []}` as `?dates=a`. */
export function query(values) {
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") asked.append(name, one);
    }
  }
  const text = asked.toString();
  return text ? `?${text}` : "";
}

export const get = (path, options = {}) => call(path, { method: "GET" }, options);

export function send(path, body, method = "POST", options = {}) {
  const text = JSON.stringify(body);
  const init = { method, body: text, headers: { "Content-Type": "application/json" } };
  if (speaker !== null) init.headers["X-Wwts-User"] = encodeURIComponent(speaker);
  // A page that is being closed still delivers what it began to say (browsers allow 64 KiB for that).
  init.keepalive = text.length < 20_000;
  return call(path, init, options);
}

async function call(path, init, { signal, patience = PATIENCE_MS } = {}) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), patience);
  signal?.addEventListener("abort", () => limit.abort(), { once: true });
  const headers = { Accept: "application/json", ...init.headers };
  try {
    const response = await fetch(url(path), { ...init, headers, credentials: "same-origin", signal: limit.signal });
    return await read(response);
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError(0, "offline", "连不上服务器，请检查网络。");
  } finally {
    clearTimeout(timer);
  }
}

async function read(response) {
  const told = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (response.status === 401) tell(true);
  else tell(false);
  if (response.ok && told !== null) return told;
  const code = told?.error?.code ?? String(response.status);
  if (code === "other_person") for (const callback of otherPerson) callback();
  throw new ApiError(response.ok ? 502 : response.status, code, told?.error?.message ?? sentence(response.status));
}

function tell(out) {
  for (const callback of signedOut) callback(out);
}

function sentence(status) {
  if (status === 401) return "登录已过期，请重新登录。";
  if (status === 403) return "没有权限做这一步。";
  if (status === 404) return "没有找到。";
  if (status === 413) return "内容太大，请分几次提交。";
  if (status >= 500) return "服务器暂时出了问题，请稍后再试。";
  return `请求没有成功（${status}）。`;
}
