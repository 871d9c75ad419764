// What went wrong, in words that say what to do.

const READABLE = "JPEG, PNG, WebP, GIF, BMP and TIFF pictures can be read.";

/** Of a file that needs no server to be told apart; null for others. */
export function problemOfFile(file, limits = {}) {
  const name = file.name ? `“${file.name}”` : "That";
  if (!file.size) return { title: "The file is empty", text: `${name} has no content.` };
  if (/^(text|video|audio)\//.test(file.type) || /^application\/(pdf|zip|json)$/.test(file.type)) {
    return { title: "That is not a picture", text: `${name} is of the type ${file.type}. ${READABLE}` };
  }
  const most = limits.max_bytes;
  if (most && file.size > most) {
    return { title: "The file is too large", text: `${name} has ${megabytes(file.size)}; this server takes up to ${megabytes(most)}.` };
  }
  return null;
}

/** Of a record whose image could not be looked at. */
export function problemOfRecord({ status, error }) {
  const [title, text] = {
    unreadable: ["The picture cannot be read", `The file is damaged, or it is no picture. ${READABLE}`],
    unsupported: ["This kind of picture is not supported", READABLE],
    too_large: ["The picture has too many pixels", "Make it smaller and try again."],
  }[status] ?? ["The detector failed on this picture", "Other pictures may well work."];
  return { title, text, detail: error };
}

/** Of an answer that is no record. `again`: trying again makes sense. `key`: a key is missing. */
export function problemOfServer({ status, detail, retryAfter }) {
  const soon = retryAfter ? `Try again in ${retryAfter} second${retryAfter === 1 ? "" : "s"}.` : "Try again in a moment.";
  const unknown = status >= 400 ? ["The server cannot do that", ""] : ["The server cannot be reached", "Is it still running, and is this computer online?", { again: true }];
  const [title, text, more = {}] = {
    400: ["The picture cannot be read", `The file is damaged, or it is no picture. ${READABLE}`],
    401: ["This server asks for a key", "Whoever runs it can give you one. It is kept until this tab is closed.", { key: true }],
    403: ["The key is not allowed to do that", "Whoever runs this server can give you another one.", { key: true }],
    404: ["This model is not there any more", "Load the page again to see which models there are."],
    413: ["The picture is too large for this server", "Make it smaller and try again."],
    415: ["That is not a picture the detector can read", READABLE],
    422: ["The picture cannot be read", `The file is damaged, or it is no picture. ${READABLE}`],
    429: ["Too many requests", soon, { again: true }],
    500: ["The server failed", "This is not the picture's fault.", { again: true }],
    502: ["The server is not ready", soon, { again: true }],
    503: ["The server is busy", soon, { again: true }],
    504: ["That took too long", "The server gave up. A smaller picture is faster.", { again: true }],
    408: ["That took too long", "The server gave up. A smaller picture is faster.", { again: true }],
  }[status] ?? unknown;
  return { title, text, detail, ...more };
}

function megabytes(bytes) {
  return bytes < 100_000 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
