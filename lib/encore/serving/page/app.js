// The page: a playlist on one side, what could come next on the other.

import { ApiError, models, playlistOf, popular, recommend, setToken, settings, tracksOf } from "./api.js";
import { Column } from "./column.js";
import { element } from "./dom.js";
import { linksIn, parse, titleOfFile } from "./importing.js";
import { ofFragment, Playlist, toFragment, uriOf } from "./state.js";
import { Search } from "./search.js";
import { TrackList } from "./tracks.js";

const $ = (id) => document.getElementById(id);
const SUGGESTED = 20;
const MAX_FILE = 5_000_000;

const playlist = new Playlist(changed);
const list = new TrackList($("tracks"), { remove: removeTrack, move: moveTrack });
const search = new Search({ isChosen: (track) => playlist.has(track.uri), choose: addTrack });
const hooks = { add: addTrack, chosen: modelChosen, shown: markCommon, denied: askToken };
const columns = [new Column(0, playlist, hooks), new Column(1, playlist, hooks)];
let isComparing = false;
let known = { embed: false, max_k: 100, playlists: false };
let about = null;
let writtenFragment = null;
let readNumber = 0;

// --- what is shown

function changed(kind) {
  if (kind === "tracks") {
    list.show(playlist.tracks);
    if ($("title").value !== playlist.title) $("title").value = playlist.title;
  }
  const n = playlist.tracks.length;
  $("playlist-meta").textContent = n ? `${n} ${n === 1 ? "track" : "tracks"}` : "";
  $("playlist-empty").hidden = n > 0;
  $("tracks").hidden = n === 0;
  $("example").hidden = !playlist.isExample;
  $("undo").disabled = !playlist.canUndo;
  $("clear").disabled = n === 0 && !playlist.title;
  $("copy-uris").disabled = n === 0;
  document.title = playlist.title.trim() ? `${playlist.title.trim()} · Encore` : "Encore";
  // at once without what was added, the rest follows
  for (const column of shownColumns()) column.show();
  writeFragment();
  refresh(kind === "title" ? 300 : undefined);
}

const shownColumns = () => (isComparing ? columns : columns.slice(0, 1));

async function refresh(pause) {
  if (!about) return;
  if (playlist.tracks.length || playlist.title.trim()) {
    for (const column of shownColumns()) column.refresh(pause);
    return;
  }
  for (const column of shownColumns()) column.refresh(pause);
  const tracks = await popular(SUGGESTED).catch(() => []);
  if (!playlist.tracks.length && !playlist.title.trim()) for (const column of shownColumns()) column.suggest(tracks);
}

function markCommon() {
  const [first, second] = columns.map((column) => column.ranks);
  const ready = isComparing && columns.every((column) => column.answer);
  columns[0].mark(ready ? second : null);
  columns[1].mark(ready ? first : null);
  const common = ready ? [...first.keys()].filter((uri) => second.has(uri)).length : 0;
  $("common").hidden = !ready;
  $("common").textContent = ready ? `${common} of ${Math.max(first.size, second.size)} tracks are in both lists.` : "";
}

function compare(on) {
  isComparing = on;
  $("compare").setAttribute("aria-pressed", String(on));
  document.body.classList.toggle("comparing", on);
  $("columns").replaceChildren(...shownColumns().map((column) => column.element));
  if (on && columns[1].model === columns[0].model) {
    const options = [...columns[1].select.options].map((option) => option.value);
    const other = ["ials", "adjacency", "fusion", "popularity", ""].find((name) => options.includes(name) && name !== (columns[0].model ?? ""));
    columns[1].offer(about.names, about.served, other ?? null);
  }
  markCommon();
}

function modelChosen() {
  writeFragment();
  refresh(0);
}

function tell(text, { undo = false } = {}) {
  $("status").textContent = text;
  $("toast-text").textContent = text;
  $("toast-undo").hidden = !undo;
  $("toast").hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => ($("toast").hidden = true), undo ? 8000 : 4000);
}

const counted = (n, noun = "track") => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// --- what the user does

function addTrack(track, column = null) {
  const name = track.name ?? "the track";
  if (playlist.add([track])) $("status").textContent = `Added ${name}. ${counted(playlist.tracks.length)}.`;
  else tell(playlist.has(track.uri) ? `${name} is in the playlist already.` : "The playlist is full.");
  if (column === null) $("search").focus();
}

function removeTrack(track) {
  playlist.remove(track.uri);
  if (!playlist.tracks.length) $("search").focus();
  tell(`Removed ${track.name ?? "the track"}.`, { undo: true });
}

function moveTrack(track, place) {
  if (playlist.move(track.uri, place)) {
    const now = playlist.tracks.findIndex((other) => other.uri === track.uri) + 1;
    $("status").textContent = `${track.name ?? "Track"}: ${now} of ${playlist.tracks.length}.`;
  }
}

function undo() {
  if (playlist.undo()) tell("Undone.");
}

/** A playlist to begin with: a popular track, and what goes with it. */
async function surprise({ first = null, isExample = false } = {}) {
  const tracks = await popular(50);
  if (!tracks.length) return;
  const start = tracks[first ?? Math.floor(Math.random() * tracks.length)];
  const asked = { tracks: [start.uri], title: null, k: 25, model: null, pid: null };
  const { recommendations } = await recommend(asked);
  const chosen = [start];
  for (const track of recommendations) {
    if (chosen.length < 5 && !chosen.some((other) => other.artist === track.artist)) chosen.push(track);
  }
  playlist.replace({ tracks: chosen, isExample }, { undoable: !isExample });
  if (!isExample) tell(`A playlist that starts with ${start.name ?? "a popular track"}.`, { undo: true });
}

async function addIds({ ids, title, skipped }, { replace = false, fileTitle = "" } = {}) {
  const wanted = [...new Set(ids)];
  const tracks = await tracksOf(wanted);
  const before = playlist.tracks.length;
  let added = tracks.length;
  if (replace) playlist.replace({ tracks, title: title || fileTitle });
  else {
    added = playlist.add(tracks);
    if (!playlist.title && !before && (title || fileTitle)) {
      $("title").value = title || fileTitle;
      playlist.setTitle(title || fileTitle);
    }
  }
  const notes = [`Added ${counted(added)}.`];
  if (wanted.length > tracks.length) notes.push(`${wanted.length - tracks.length} not in this catalogue.`);
  if (!replace && tracks.length > added) notes.push(`${tracks.length - added} in the playlist already.`);
  if (skipped) notes.push(`${counted(skipped, "row")} without a track of Spotify.`);
  tell(notes.join(" "), { undo: added > 0 });
}

/** Import a text; returns what is wrong with it, or null. */
async function importText(text, options = {}) {
  const found = parse(text);
  if (!found.ids.length) return "No links, URIs or ids of Spotify tracks were found in it.";
  try {
    await addIds(found, options);
    return null;
  } catch (error) {
    return problemOf(error);
  }
}

async function importFile(file, options = {}) {
  if (file.size > MAX_FILE) return `The file is too large: at most ${MAX_FILE / 1e6} MB.`;
  return importText(await file.text(), { ...options, fileTitle: titleOfFile(file.name) });
}

function problemOf(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) askToken();
  return error.message;
}

/** Run what a button asks for, and tell when the server does not do it. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    tell(problemOf(error));
  }
}

async function copy(text, message) {
  try {
    await navigator.clipboard.writeText(text);
    tell(message);
  } catch {
    // browsers allow it on https and on this machine only
    $("copy-text").value = text;
    $("copy-dialog").showModal();
    $("copy-text").select();
  }
}

// --- the address

function writeFragment() {
  if (!about) return;
  const models = columns.map((column) => column.model ?? about.served);
  const fragment = toFragment(
    playlist.isExample ? { tracks: [], title: "", pid: null } : playlist,
    [columns[0].model, models[1]],
    isComparing,
  );
  writtenFragment = fragment ? `#${fragment}` : "";
  history.replaceState(null, "", location.pathname + location.search + writtenFragment);
}

/** Show what the address says; returns whether it says anything. */
async function readFragment() {
  const number = ++readNumber;
  const wanted = ofFragment(location.hash);
  if (!wanted) return false;
  const tracks = wanted.ids.length ? await tracksOf(wanted.ids) : [];
  if (number !== readNumber) return true;
  columns[0].offer(about.names, about.served, wanted.models[0]);
  columns[1].offer(about.names, about.served, wanted.models[1]);
  compare(wanted.models[1] !== null && about.names.includes(wanted.models[1]));
  playlist.replace({ tracks, title: wanted.title, pid: wanted.pid }, { undoable: playlist.tracks.length > 0 });
  const missing = new Set(wanted.ids).size - tracks.length;
  if (missing > 0) tell(`${counted(missing)} of this link ${missing === 1 ? "is" : "are"} not in this catalogue.`);
  return tracks.length > 0 || Boolean(wanted.title);
}

// --- start

function identify() {
  // the same version answers the same browser while two are compared
  if (document.cookie.split("; ").some((part) => part.startsWith("encore_user="))) return;
  const user = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  document.cookie = `encore_user=${user}; Path=/; Max-Age=31536000; SameSite=Strict`;
}

function askToken() {
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

/** An example that the server refuses is no reason not to start. */
function unlessItPasses(error) {
  if (!(error instanceof ApiError) || error.passes || error.status === 401) throw error;
}

async function start() {
  try {
    known = await settings();
    const found = await models();
    const served = found.models.find((model) => model.role === "champion") ?? found.models[0];
    const names = [...new Set([found.served, ...(served?.models ?? [served?.name])])].filter(Boolean);
    about = { served: found.served, names };
    for (const column of columns) {
      column.embeds = known.embed;
      column.maxK = known.max_k;
      column.failure.hidden = true;
      column.offer(names, found.served, null);
    }
    $("compare").disabled = names.length < 2;
    $("pid-row").hidden = !known.playlists;
    const tracks = served?.n_tracks;
    $("server").textContent = tracks ? `${tracks.toLocaleString("en")} tracks` : "";
    $("server").hidden = !tracks;
    const isFresh = !(await readFragment()) && !playlist.tracks.length && !playlist.title;
    if (isFresh) await surprise({ first: 0, isExample: true }).catch(unlessItPasses);
    if (!playlist.isExample) changed("tracks");
  } catch (error) {
    about = null;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) askToken();
    else columns[0].fail(error, start);
  }
}

$("columns").before(element("p", { id: "common", className: "common-note", hidden: true }));
compareListeners();
compare(false);
identify();
start();

function compareListeners() {
  $("compare").addEventListener("click", () => {
    if (!about) return;
    compare(!isComparing);
    writeFragment();
    refresh(0);
  });
  $("title").addEventListener("input", () => {
    playlist.isExample = false;
    playlist.setTitle($("title").value);
  });
  $("title").addEventListener("keydown", (event) => event.key === "Enter" && $("search").focus());
  $("scratch").addEventListener("click", () => {
    playlist.replace({ tracks: [] });
    $("search").focus();
  });
  $("surprise").addEventListener("click", () => attempt(() => surprise()));
  $("undo").addEventListener("click", undo);
  $("toast-undo").addEventListener("click", () => {
    undo();
    $("search").focus();
  });
  $("clear").addEventListener("click", () => {
    playlist.replace({ tracks: [] });
    tell("Cleared.", { undo: true });
    $("search").focus();
  });
  $("copy-link").addEventListener("click", () => {
    // an example has no address yet
    if (playlist.isExample) {
      playlist.isExample = false;
      changed("title");
    }
    copy(location.href, "The link is copied.");
  });
  $("copy-uris").addEventListener("click", () =>
    copy(playlist.tracks.map((track) => track.uri).join("\n"), `${counted(playlist.tracks.length)} copied. Paste them into a playlist in Spotify.`),
  );
  document.querySelector("[data-skip]").addEventListener("click", (event) => {
    event.preventDefault();
    $("next").focus();
  });
  window.addEventListener("hashchange", () => {
    if (about && location.hash !== writtenFragment) attempt(readFragment);
  });
  importListeners();
  window.addEventListener("keydown", (event) => {
    const isText = event.target.matches?.("input, textarea, select");
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "/" && !isText) {
      event.preventDefault();
      $("search").focus();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
      if (isText && event.target.value) return;
      event.preventDefault();
      undo();
    }
  });
  $("token-form").addEventListener("submit", () => {
    setToken($("token").value);
    $("token").value = "";
    start();
  });
}

function importListeners() {
  const dialog = $("import-dialog");
  $("import").addEventListener("click", () => {
    $("import-error").textContent = "";
    dialog.showModal();
    $("import-text").focus();
  });
  $("import-cancel").addEventListener("click", () => dialog.close());
  const done = async (replace) => {
    const [text, file, pid] = [$("import-text").value, $("import-file").files[0], $("import-pid").value.trim()];
    let problem = "Paste something, or choose a file.";
    if (file) problem = await importFile(file, { replace });
    else if (text.trim()) problem = await importText(text, { replace });
    else if (pid) problem = await importPlaylist(pid);
    $("import-error").textContent = problem ?? "";
    if (problem) return;
    $("import-form").reset();
    dialog.close();
  };
  $("import-form").addEventListener("submit", (event) => {
    event.preventDefault();
    done(false);
  });
  $("import-replace").addEventListener("click", () => done(true));
  window.addEventListener("paste", (event) => {
    const isText = event.target.matches?.("input, textarea") && event.target.id !== "search";
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (isText || document.querySelector("dialog[open]") || !linksIn(text).length) return;
    event.preventDefault();
    importText(text).then((problem) => problem && tell(problem));
  });
  let depth = 0;
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragenter", (event) => {
    if (!isFile(event)) return;
    depth++;
    $("dropping").hidden = false;
  });
  window.addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  window.addEventListener("dragleave", (event) => {
    if (!isFile(event) || --depth > 0) return;
    depth = 0;
    $("dropping").hidden = true;
  });
  window.addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    $("dropping").hidden = true;
    const file = event.dataTransfer.files[0];
    if (file) importFile(file).then((problem) => problem && tell(problem));
  });
}

async function importPlaylist(pid) {
  try {
    const { title, tracks } = await playlistOf(pid);
    playlist.replace({ tracks, title: title ?? "", pid: Number(pid) });
    tell(`Playlist ${pid}: ${counted(tracks.length)}.`, { undo: true });
    return null;
  } catch (error) {
    return error instanceof ApiError && error.status === 404 ? `There is no playlist ${pid}.` : problemOf(error);
  }
}
