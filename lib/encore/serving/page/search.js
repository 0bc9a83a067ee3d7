// The search box: a combobox with a list of options, as in the ARIA Authoring Practices.

import { search } from "./api.js";
import { element, sleeve } from "./dom.js";

const SHOWN = 8;
const PAUSE = 60;

const fold = (text) => text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();

/** A text in which the starts of words that were searched are marked. */
function marked(text, wanted) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(/[\p{L}\p{M}\p{N}]+/gu)) {
    const word = fold(found[0]);
    const length = Math.max(0, ...wanted.filter((start) => word.startsWith(start)).map((start) => start.length));
    if (!length) continue;
    parts.push(text.slice(end, found.index), element("mark", {}, found[0].slice(0, length)));
    end = found.index + Math.min(length, found[0].length);
  }
  return [...parts, text.slice(end)];
}

export class Search {
  /** `isChosen(track)`: whether the playlist has it; `choose(track)`: called when one is picked. */
  constructor({ isChosen, choose }) {
    this.input = document.getElementById("search");
    this.drop = document.getElementById("drop");
    this.list = document.getElementById("found");
    this.none = document.getElementById("none");
    this.isChosen = isChosen;
    this.choose = choose;
    this.tracks = [];
    this.active = -1;
    this.asked = 0;
    this.input.addEventListener("input", () => this.changed());
    this.input.addEventListener("keydown", (event) => this.pressed(event));
    this.input.addEventListener("focus", () => this.input.value.trim() && this.changed());
    this.input.addEventListener("blur", () => this.close());
    // a click must not take the focus from the input, which closes the list
    this.drop.addEventListener("pointerdown", (event) => event.preventDefault());
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.pick([...this.list.children].indexOf(option));
    });
  }

  changed() {
    const number = ++this.asked;
    clearTimeout(this.timer);
    this.request?.abort();
    const text = this.input.value.trim();
    if (!text) {
      this.close();
      return;
    }
    this.timer = setTimeout(async () => {
      this.request = new AbortController();
      try {
        const tracks = await search(text, SHOWN, this.request.signal);
        if (number === this.asked) this.show(tracks, text);
      } catch (error) {
        if (error.name === "AbortError" || number !== this.asked) return;
        this.show([], text, error.message);
      }
    }, PAUSE);
  }

  show(tracks, text, problem = null) {
    this.tracks = tracks;
    this.active = -1;
    this.input.removeAttribute("aria-activedescendant");
    const wanted = fold(text).match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
    this.list.replaceChildren(
      ...tracks.map((track, i) =>
        element(
          "li",
          { id: `found-${i}`, role: "option", "aria-selected": "false" },
          sleeve(track),
          element(
            "span",
            { className: "what" },
            element("span", { className: "name" }, ...marked(track.name ?? "Unknown title", wanted)),
            element("span", { className: "artist" }, ...marked(track.artist ?? "Unknown artist", wanted)),
          ),
          this.isChosen(track)
            ? element("span", { className: "tag" }, "in playlist")
            : element("span", { className: "count" }, `${track.popularity.toLocaleString("en")}×`),
        ),
      ),
    );
    this.list.hidden = !tracks.length;
    this.none.hidden = Boolean(tracks.length);
    this.none.textContent = problem ?? `No track found for “${text}”.`;
    this.drop.hidden = false;
    this.input.setAttribute("aria-expanded", String(Boolean(tracks.length)));
    document.getElementById("status").textContent = tracks.length
      ? `${tracks.length} ${tracks.length === 1 ? "track" : "tracks"} found.`
      : this.none.textContent;
  }

  close() {
    this.asked++;
    clearTimeout(this.timer);
    this.tracks = [];
    this.active = -1;
    this.drop.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  select(place) {
    const options = this.list.children;
    this.active = (place + options.length + 1) % (options.length + 1);
    // the place after the last one is the input itself
    if (this.active === options.length) this.active = -1;
    for (const [i, option] of [...options].entries()) option.setAttribute("aria-selected", String(i === this.active));
    if (this.active < 0) this.input.removeAttribute("aria-activedescendant");
    else {
      this.input.setAttribute("aria-activedescendant", `found-${this.active}`);
      options[this.active].scrollIntoView({ block: "nearest" });
    }
  }

  pick(place) {
    const track = this.tracks[place];
    if (!track) return;
    this.input.value = "";
    this.close();
    this.choose(track);
  }

  pressed(event) {
    if (event.isComposing) return;
    const isOpen = this.tracks.length > 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (isOpen) this.select(event.key === "ArrowDown" ? this.active + 1 : this.active < 0 ? this.tracks.length - 1 : this.active - 1);
      else if (this.input.value.trim()) this.changed();
    } else if (event.key === "Enter") {
      event.preventDefault();
      // without a choice, the first one
      if (isOpen) this.pick(Math.max(0, this.active));
    } else if (event.key === "Escape") {
      if (this.drop.hidden) this.input.value = "";
      this.close();
    }
  }
}
