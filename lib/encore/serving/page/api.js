// The scorer's REST API.

const TOKEN = "encore-token";

/** An answer that is not the one asked for. `status` is 0 if there was none at all. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return this.status === 0 || this.status === 503 || this.status === 502 || this.status === 504;
  }
}

async function ask(path, { signal, body } = {}) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  let content;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? "GET" : "POST",
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    content = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  let parsed = null;
  try {
    parsed = JSON.parse(content);
  } catch {
    // an answer of something else, such as a proxy
  }
  if (!answer.ok || parsed === null) {
    const seconds = Number(answer.headers.get("Retry-After"));
    const message = parsed?.message ?? `The server answered with status ${answer.status}.`;
    throw new ApiError(answer.ok ? 502 : answer.status, message, seconds > 0 ? seconds : null);
  }
  return parsed;
}

/** Keep a token for the requests of this tab. */
export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** The most popular tracks whose names and artists have words that start with those of a text. */
export async function search(text, n, signal) {
  return (await ask(`api/tracks?${new URLSearchParams({ q: text, n })}`, { signal })).tracks;
}

/** The most popular tracks. */
export async function popular(n) {
  return (await ask(`api/tracks?n=${n}`)).tracks;
}

/** The tracks with some ids, in their order; unknown ones are left out. */
export async function tracksOf(ids) {
  const found = [];
  for (let start = 0; start < ids.length; start += 200) {
    found.push(...(await ask(`api/tracks?ids=${ids.slice(start, start + 200).join(",")}`)).tracks);
  }
  return found;
}

/** A playlist of the lake. */
export const playlistOf = (pid) => ask(`api/playlists/${encodeURIComponent(pid)}`);

export const models = () => ask("api/models");
export const settings = () => ask("api/settings");

// a reason costs a query for each track of the playlist
const MOST_EXPLAINED = 300;

/** Recommendations for `{tracks, title, k, model, pid}`, with reasons unless the playlist is very long. */
export const recommend = (asked, signal) =>
  ask("api/recommend", { signal, body: { ...asked, explain: asked.tracks.length <= MOST_EXPLAINED } });
