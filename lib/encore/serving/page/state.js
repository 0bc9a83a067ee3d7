// The playlist, what was done to it, and its address.

const PREFIX = "spotify:track:";
export const MAX_TRACKS = 1000;
const MAX_UNDO = 100;

export const idOf = (uri) => uri.slice(PREFIX.length);
export const uriOf = (id) => PREFIX + id;

/** A playlist that can be changed and changed back. Calls `changed(kind)` after each change: "tracks" or "title". */
export class Playlist {
  constructor(changed) {
    this.tracks = [];
    this.title = "";
    this.pid = null;
    this.isExample = false;
    this.past = [];
    this.changed = changed;
  }

  has(uri) {
    return this.tracks.some((track) => track.uri === uri);
  }

  get canUndo() {
    return this.past.length > 0;
  }

  remember() {
    this.past.push({ tracks: this.tracks.slice(), title: this.title, pid: this.pid, isExample: this.isExample });
    if (this.past.length > MAX_UNDO) this.past.shift();
  }

  /** Add tracks that are not in it yet; returns how many were. */
  add(tracks) {
    const known = new Set(this.tracks.map((track) => track.uri));
    const fresh = tracks.filter((track) => !known.has(track.uri) && known.add(track.uri));
    const added = fresh.slice(0, Math.max(0, MAX_TRACKS - this.tracks.length));
    if (!added.length) return 0;
    this.remember();
    this.tracks = [...this.tracks, ...added];
    this.isExample = false;
    this.changed("tracks");
    return added.length;
  }

  remove(uri) {
    if (!this.has(uri)) return;
    this.remember();
    this.tracks = this.tracks.filter((track) => track.uri !== uri);
    this.isExample = false;
    this.changed("tracks");
  }

  /** Move a track to a place; returns whether it moved. */
  move(uri, to) {
    const from = this.tracks.findIndex((track) => track.uri === uri);
    const place = Math.min(Math.max(to, 0), this.tracks.length - 1);
    if (from < 0 || from === place) return false;
    this.remember();
    const tracks = this.tracks.slice();
    tracks.splice(place, 0, ...tracks.splice(from, 1));
    this.tracks = tracks;
    this.changed("tracks");
    return true;
  }

  /** Replace all of it. */
  replace({ tracks, title = "", pid = null, isExample = false }, { undoable = true } = {}) {
    if (undoable) this.remember();
    this.tracks = [];
    const known = new Set();
    for (const track of tracks) if (!known.has(track.uri) && known.add(track.uri)) this.tracks.push(track);
    this.tracks = this.tracks.slice(0, MAX_TRACKS);
    Object.assign(this, { title, pid, isExample });
    this.changed("tracks");
  }

  setTitle(title) {
    this.title = title;
    this.changed("title");
  }

  undo() {
    const before = this.past.pop();
    if (!before) return false;
    Object.assign(this, before);
    this.changed("tracks");
    return true;
  }
}

/** The fragment of an address for a playlist and the models that are shown. Ids are of one length, so not separated. */
export function toFragment({ tracks, title, pid }, models, isComparing) {
  const parts = [];
  if (tracks.length) parts.push(`p=${tracks.map((track) => idOf(track.uri)).join("")}`);
  if (title) parts.push(`t=${encodeURIComponent(title)}`);
  if (pid !== null) parts.push(`n=${pid}`);
  if (models[0]) parts.push(`m=${encodeURIComponent(models[0])}`);
  if (isComparing && models[1]) parts.push(`c=${encodeURIComponent(models[1])}`);
  return parts.join("&");
}

/** The reverse: `{ids, title, pid, models}`, or null for a fragment that is none of ours. */
export function ofFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, "").replace(/\+/g, "%2B"));
  if (!["p", "t", "m", "c"].some((name) => given.has(name))) return null;
  const ids = (given.get("p") ?? "").match(/[0-9A-Za-z]{22}/g) ?? [];
  const pid = /^[0-9]{1,18}$/.test(given.get("n") ?? "") ? Number(given.get("n")) : null;
  return {
    ids: ids.slice(0, MAX_TRACKS),
    title: (given.get("t") ?? "").slice(0, 200),
    pid,
    models: [given.get("m") || null, given.get("c") || null],
  };
}
