// The server's interface: which models there are, and what one finds in a picture.

/** An answer that is no result: the problem document's `status`, `title` and `detail`; 0 where no answer came. */
export class ServerProblem extends Error {
  constructor(status, { title = "", detail = "" } = {}, retryAfter = null) {
    super(title || `status ${status}`);
    Object.assign(this, { status, title, detail, retryAfter });
  }
}

let key = null;

/** The key for servers that ask for one; kept for this tab only. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem("key", value);
  } catch { /* then it is asked for again after a reload */ }
}

export async function fetchJson(address, options = {}) {
  try {
    key ??= sessionStorage.getItem("key");
  } catch { /* a browser may keep nothing */ }
  const headers = { accept: "application/json", ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(address, { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerProblem(0);
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  const retry = Number(answer.headers.get("retry-after"));
  throw new ServerProblem(answer.status, body ?? {}, Number.isFinite(retry) && retry > 0 ? retry : null);
}

export async function models() {
  return (await fetchJson("v1/models")).models;
}

/** The record of a picture, and the milliseconds from here to here. */
export async function detect(file, model, signal) {
  const begin = performance.now();
  const type = file.type || "application/octet-stream";
  const record = await fetchJson(`v1/detect?${new URLSearchParams({ model, format: "json" })}`, {
    method: "POST",
    body: file,
    headers: { "content-type": type },
    signal,
  });
  return { record, elapsed: performance.now() - begin };
}
