// The list of the playlist's tracks, which are moved by dragging and by the keyboard.

import { arrange, element, icon, sleeve } from "./dom.js";

export class TrackList {
  /** `remove(track)` and `move(track, place)` are called when the user asks for it; `play(track)` is null without player. */
  constructor(list, { remove, move }) {
    this.list = list;
    this.remove = remove;
    this.move = move;
    this.rows = new Map();
  }

  show(tracks) {
    const kept = new Map();
    tracks.forEach((track, i) => {
      const row = this.rows.get(track.uri) ?? this.row(track);
      row.place = i;
      row.number.textContent = String(i + 1);
      row.grip.setAttribute("aria-label", `Move ${track.name ?? "track"}, now ${i + 1} of ${tracks.length}: arrow keys`);
      kept.set(track.uri, row);
    });
    this.rows = kept;
    this.tracks = tracks;
    arrange(this.list, tracks.map((track) => kept.get(track.uri).item));
  }

  row(track) {
    const name = track.name ?? "Unknown title";
    const grip = element("button", { type: "button", className: "grip plain" }, icon("grip"));
    const number = element("span", { className: "place", "aria-hidden": "true" });
    const remove = element("button", { type: "button", className: "remove plain", "aria-label": `Remove ${name}` }, icon("remove"));
    const item = element(
      "li",
      { className: "track" },
      grip,
      number,
      sleeve(track),
      element(
        "div",
        { className: "what" },
        element("span", { className: "name", title: name }, name),
        element("span", { className: "artist" }, track.artist ?? "Unknown artist"),
      ),
      remove,
    );
    item.dataset.uri = track.uri;
    const row = { track, item, grip, number, place: 0 };
    remove.addEventListener("click", () => this.remove(track));
    grip.addEventListener("keydown", (event) => this.pressed(event, row));
    grip.addEventListener("pointerdown", (event) => this.grabbed(event, row));
    return row;
  }

  pressed(event, row) {
    const last = this.tracks.length - 1;
    const to = { ArrowUp: row.place - 1, ArrowDown: row.place + 1, Home: 0, End: last }[event.key];
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove(row.track);
    } else if (to !== undefined) {
      event.preventDefault();
      this.move(row.track, to);
      row.grip.focus();
    }
  }

  grabbed(event, row) {
    if (event.button !== 0) return;
    event.preventDefault();
    row.grip.focus({ preventScroll: true });
    const { item, grip } = row;
    grip.setPointerCapture(event.pointerId);
    item.classList.add("held");
    let from = event.clientY;
    const moved = (now) => {
      // a neighbour is passed when the middle of the row is beyond the neighbour's
      let shift = now.clientY - from;
      for (;;) {
        const other = shift > 0 ? item.nextElementSibling : item.previousElementSibling;
        if (!other) break;
        const step = other.offsetHeight;
        if (Math.abs(shift) < step / 2) break;
        if (shift > 0) other.after(item);
        else other.before(item);
        from += shift > 0 ? step : -step;
        shift = now.clientY - from;
      }
      item.style.setProperty("--shift", `${shift}px`);
    };
    const ended = (end) => {
      grip.removeEventListener("pointermove", moved);
      grip.removeEventListener("pointerup", ended);
      grip.removeEventListener("pointercancel", ended);
      item.classList.remove("held");
      item.style.removeProperty("--shift");
      const place = [...this.list.children].indexOf(item);
      if (end.type === "pointercancel" || place === row.place) this.show(this.tracks);
      else this.move(row.track, place);
    };
    grip.addEventListener("pointermove", moved);
    grip.addEventListener("pointerup", ended);
    grip.addEventListener("pointercancel", ended);
  }
}
