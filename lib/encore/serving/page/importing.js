// Tracks in what people paste or drop: links, URIs, ids, CSV files.

const ID = /^[0-9A-Za-z]{22}$/;
// of a track only: albums, artists and episodes have the same form
const TRACK =
  /(?:spotify:(?:user:[^:\s]+:)?track:|(?:https?:\/\/)?(?:open|play)\.spotify\.com\/(?:intl-[a-z-]+\/)?(?:embed\/)?track\/)([0-9A-Za-z]{22})(?![0-9A-Za-z])/g;
const ID_COLUMN = /^(spotify|track)?[\s_-]*(track)?[\s_-]*(id|uri|url|link)$/i;
const TITLE_COLUMN = /^playlist[\s_-]*(name|title)?$/i;

/** The ids of tracks in links and URIs in a text, in their order, repeats kept. */
export function linksIn(text) {
  return Array.from(text.matchAll(TRACK), (found) => found[1]);
}

/** The rows of a CSV text; quotes as in RFC 4180, separated by comma, semicolon or tab. */
export function csvRows(text) {
  const source = text.replace(/^\uFEFF/, "");
  const separator = separatorOf(source);
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = [];
    cell = "";
  };
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (source[i + 1] === '"') {
        cell += '"';
        i++;
      } else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === separator) {
      row.push(cell);
      cell = "";
    } else if (c === "\n" || c === "\r") {
      if (c === "\r" && source[i + 1] === "\n") i++;
      endRow();
    } else cell += c;
  }
  endRow();
  return rows;
}

function separatorOf(text) {
  const header = text.slice(0, Math.max(0, text.search(/[\r\n]/)) || text.length);
  const counts = [",", ";", "\t"].map((c) => header.split(c).length);
  return [",", ";", "\t"][counts.indexOf(Math.max(...counts))];
}

function idIn(cell) {
  const text = cell.trim();
  if (ID.test(text)) return text;
  return linksIn(text)[0] ?? null;
}

/**
 * What a text holds: `{ids, title, skipped}`. `ids`: of tracks, in their order; `title`: of the playlist, or null;
 * `skipped`: rows of a CSV file without a track of Spotify, such as local files.
 */
export function parse(text) {
  const rows = csvRows(text);
  const header = rows[0] ?? [];
  const named = header.findIndex((name) => ID_COLUMN.test(name.trim()));
  const body = rows.slice(1);
  const column = named >= 0 && header.length > 1 && body.some((row) => idIn(row[named] ?? "")) ? named : columnOf(rows);
  if (column >= 0) {
    const all = named === column ? body : rows;
    const found = all.map((row) => idIn(row[column] ?? ""));
    const ids = found.filter((id) => id !== null);
    // without a named column the first row may be the names
    const isHeader = named !== column && found[0] === null;
    const at = header.findIndex((name) => TITLE_COLUMN.test(name.trim()));
    const titles = new Set(at < 0 ? [] : body.map((row) => (row[at] ?? "").trim()).filter(Boolean));
    return { ids, title: titles.size === 1 ? [...titles][0] : null, skipped: all.length - ids.length - (isHeader ? 1 : 0) };
  }
  const links = linksIn(text);
  if (links.length) return { ids: links, title: null, skipped: 0 };
  return { ids: text.split(/[\s,;]+/).filter((word) => ID.test(word)), title: null, skipped: 0 };
}

/** The column of a table with the most links or URIs of tracks; -1 if it is no table. */
function columnOf(rows) {
  const width = Math.max(0, ...rows.map((row) => row.length));
  if (width < 2 || rows.length < 2) return -1;
  let best = -1;
  let most = 0;
  for (let column = 0; column < width; column++) {
    const hits = rows.filter((row) => linksIn(row[column] ?? "").length === 1).length;
    if (hits > most) [best, most] = [column, hits];
  }
  return most >= (rows.length - 1) / 2 ? best : -1;
}

/** A title from the name of an exported file: `road_trip.csv` is "road trip". */
export function titleOfFile(name) {
  return name.replace(/\.[^.]*$/, "").replace(/_+/g, " ").trim();
}
