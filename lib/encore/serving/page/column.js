// Recommendations of one model, which follow the playlist.

import { ApiError, recommend } from "./api.js";
import { arrange, element, icon, sleeve } from "./dom.js";
import { idOf } from "./state.js";

export const STEP = 20;
const PAUSE = 120;
const LONGEST_WAIT = 15;

const HINTS = {
  ranker: "Boosted trees order the best candidates of the other models.",
  fusion: "A weighted sum of several models.",
  ials: "Factors of playlists and tracks.",
  adjacency: "What stands close to these tracks in other playlists.",
  artist: "Popular tracks of these artists.",
  title: "Tracks of playlists with a similar title.",
  item_knn: "What occurs together with these tracks.",
  playlist_knn: "What the most similar playlists have.",
  cosine: "Tracks that sound like these.",
  popularity: "The most popular tracks, whatever the playlist.",
  random: "Any tracks, as a baseline.",
};

export class Column {
  /**
   * `playlist`: a Playlist; `number`: 0, or 1 for the other one; `add(track, column)`, `chosen()`, `shown()` and
   * `denied()` are called when a track is added, another model is chosen, a list is shown, and a token is needed.
   */
  constructor(number, playlist, { add, chosen, shown, denied }) {
    Object.assign(this, { number, playlist, add, shown, denied });
    this.k = STEP;
    this.answer = null;
    this.suggested = [];
    this.others = null;
    this.asked = 0;
    this.failures = 0;
    this.rows = new Map();
    this.embeds = false;
    this.playing = null;
    const id = `model-${number}`;
    this.select = element("select", { id });
    this.select.addEventListener("change", () => {
      this.k = STEP;
      this.hint.textContent = HINTS[this.select.value || this.select.dataset.served] ?? "";
      chosen();
    });
    this.meta = element("p", { className: "meta" });
    this.hint = element("p", { className: "hint" });
    this.lead = element("p", { className: "lead", hidden: true });
    this.problem = element("p", { className: "problem-text" });
    this.again = element("button", { type: "button" }, "Try now");
    this.again.addEventListener("click", () => this.retry?.());
    this.failure = element("div", { className: "problem", hidden: true, role: "alert" }, this.problem, this.again);
    this.list = element("ol", { className: "recs", "aria-label": "Recommendations" });
    this.more = element("button", { type: "button", className: "more", hidden: true }, "Show more");
    this.more.addEventListener("click", () => {
      this.k += STEP;
      this.refresh(0);
    });
    this.element = element(
      "div",
      { className: "column" },
      element(
        "div",
        { className: "column-head" },
        element("label", { for: id }, number ? "Other model" : "Model"),
        this.select,
        this.meta,
      ),
      this.hint,
      element("div", { className: "progress", "aria-hidden": "true" }),
      this.failure,
      this.lead,
      this.list,
      this.more,
    );
    this.placeholders();
  }

  get model() {
    return this.select.value || null;
  }

  /** Offer models: the names, the one that is served if none is chosen, and the choice. */
  offer(names, served, choice) {
    const options = [element("option", { value: "" }, `${served} (served)`)];
    for (const name of names) if (name !== served) options.push(element("option", { value: name }, name));
    this.select.replaceChildren(...options);
    this.select.dataset.served = served;
    this.select.value = choice && names.includes(choice) && choice !== served ? choice : "";
    this.hint.textContent = HINTS[this.select.value || served] ?? "";
  }

  placeholders() {
    const row = () => element("li", { className: "rec ghost" }, element("span", { className: "ghost-art" }), element("span", { className: "ghost-text" }));
    this.list.setAttribute("aria-busy", "true");
    this.list.replaceChildren(...Array.from({ length: 8 }, row));
  }

  /** Ask again, after a pause in which further changes may follow. */
  refresh(pause = PAUSE) {
    clearTimeout(this.timer);
    const number = ++this.asked;
    this.request?.abort();
    this.element.classList.add("waiting");
    this.list.setAttribute("aria-busy", "true");
    this.timer = setTimeout(() => this.ask(number), pause);
  }

  async ask(number) {
    const { tracks, title, pid } = this.playlist;
    this.request = new AbortController();
    try {
      const answer =
        tracks.length || title.trim()
          ? await recommend(
              {
                tracks: tracks.map((track) => track.uri),
                title: title.trim() || null,
                k: this.k,
                model: this.model,
                pid,
              },
              this.request.signal,
            )
          : null;
      if (number !== this.asked) return;
      this.failures = 0;
      this.failure.hidden = true;
      this.answer = answer;
      this.show();
    } catch (error) {
      if (error.name === "AbortError" || number !== this.asked) return;
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) this.denied();
      else this.fail(error, () => this.refresh(0));
    } finally {
      if (number === this.asked) {
        this.element.classList.remove("waiting");
        this.list.setAttribute("aria-busy", "false");
      }
    }
  }

  /** Show an error, and try again by itself if that may help. */
  fail(error, retry) {
    clearInterval(this.countdown);
    this.retry = () => {
      clearInterval(this.countdown);
      retry();
    };
    this.list.querySelectorAll(".ghost").forEach((row) => row.remove());
    this.again.hidden = !error.passes;
    if (this.failure.hidden || !error.passes) {
      this.problem.textContent = error.passes
        ? `${error.status === 503 ? "The server is busy or starting." : "The server does not answer."} This page tries again.`
        : error.message;
      this.failure.hidden = false;
    }
    if (!error.passes) return;
    let seconds = Math.min(error.retryAfter ?? 2 ** this.failures, LONGEST_WAIT);
    this.failures++;
    const tell = () => (this.again.textContent = `Try now (${Math.ceil(seconds)} s)`);
    tell();
    this.countdown = setInterval(() => {
      seconds -= 1;
      if (seconds <= 0) this.retry();
      else tell();
    }, 1000);
  }

  /** Show tracks to begin with, where there is nothing to go on. */
  suggest(tracks) {
    this.answer = null;
    this.element.classList.remove("waiting");
    this.list.setAttribute("aria-busy", "false");
    this.failure.hidden = true;
    this.more.hidden = true;
    this.meta.textContent = "";
    this.lead.textContent = "Nothing to go on yet. The most popular tracks:";
    this.lead.hidden = false;
    this.suggested = tracks;
    this.show();
  }

  /** Show the last answer, without what the playlist has got meanwhile. */
  show() {
    if (!this.answer) {
      const left = this.suggested.filter((track) => !this.playlist.has(track.uri));
      if (left.length) this.fill(left.map((track) => ({ ...track, reason: { kind: "popular" }, share: null })));
      return;
    }
    const found = this.answer.recommendations.filter((track) => !this.playlist.has(track.uri));
    const scores = found.map((track) => track.score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    // scores of models have different scales, and may be negative: only their order and distances can be shown
    this.fill(found.map((track) => ({ ...track, share: high > low ? 0.06 + (0.94 * (track.score - low)) / (high - low) : 1 })));
    const { model, version, role, milliseconds, unknown } = this.answer;
    this.meta.replaceChildren(
      element("b", {}, model),
      ` version ${version}`,
      ...(role === "challenger" ? [" ", element("span", { className: "tag" }, "challenger")] : []),
      ` · ${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`,
      ...(unknown ? [` · ${unknown} unknown`] : []),
    );
    this.lead.hidden = found.length > 0;
    this.lead.textContent = "This model has nothing to recommend for this playlist. Add a track, or choose another model.";
    this.more.hidden = this.answer.recommendations.length < this.k || this.k + STEP > this.maxK;
    this.shown();
  }

  /** Ranks by URI of what is shown. */
  get ranks() {
    return new Map(this.answer ? this.answer.recommendations.map((track) => [track.uri, track.rank]) : []);
  }

  /** Mark the tracks that another list has, too: its ranks by URI, or null. */
  mark(ranks) {
    this.others = ranks;
    for (const [uri, row] of this.rows) {
      const rank = ranks?.get(uri);
      row.both.hidden = rank === undefined;
      row.both.textContent = `also no. ${rank}`;
      row.item.classList.toggle("common", rank !== undefined);
      row.item.classList.toggle("single", Boolean(ranks) && rank === undefined);
    }
  }

  fill(tracks) {
    const kept = new Map();
    tracks.forEach((track, i) => {
      const row = this.rows.get(track.uri) ?? this.row(track);
      row.rank.textContent = String(track.rank ?? i + 1);
      row.score.hidden = track.share === null;
      row.bar.style.setProperty("--share", String(track.share ?? 0));
      row.number.textContent = track.score === undefined ? "" : scoreText(track.score);
      row.why.replaceChildren(...why(track));
      kept.set(track.uri, row);
    });
    this.rows = kept;
    arrange(this.list, tracks.map((track) => kept.get(track.uri).item));
    this.mark(this.others);
  }

  row(track) {
    const name = track.name ?? "Unknown title";
    const rank = element("span", { className: "place", "aria-hidden": "true" });
    const why = element("span", { className: "why" });
    const both = element("span", { className: "tag both", hidden: true });
    const bar = element("span", { className: "bar", "aria-hidden": "true" });
    const number = element("span", { className: "number" });
    const score = element("span", { className: "score" }, both, element("span", { className: "unseen" }, "Score "), number, bar);
    const add = element("button", { type: "button", className: "add plain", "aria-label": `Add ${name}`, title: "Add to the playlist" }, icon("add"));
    add.addEventListener("click", () => this.add(track, this));
    const play = this.embeds
      ? element("button", { type: "button", className: "play plain", "aria-label": `Listen to ${name}`, "aria-expanded": "false" }, icon("play"))
      : null;
    const item = element(
      "li",
      { className: "rec" },
      rank,
      sleeve(track),
      element(
        "div",
        { className: "what" },
        element("span", { className: "name", title: name }, name),
        element("span", { className: "artist" }, track.artist ?? "Unknown artist"),
        element("span", { className: "because" }, why),
      ),
      score,
      element("span", { className: "actions" }, play, add),
    );
    item.dataset.uri = track.uri;
    play?.addEventListener("click", () => this.listen(track, item, play));
    return { item, rank, why, both, bar, number, score };
  }

  /** Open Spotify's own player below a row, or close it; one at a time. */
  listen(track, item, button) {
    const isOpen = this.playing?.item === item;
    if (this.playing) {
      this.playing.frame.remove();
      this.playing.button.setAttribute("aria-expanded", "false");
      this.playing = null;
    }
    if (isOpen) return;
    const frame = element("iframe", {
      src: `https://open.spotify.com/embed/track/${idOf(track.uri)}`,
      title: `Spotify's player: ${track.name ?? "track"}`,
      className: "player",
      allow: "encrypted-media",
      referrerPolicy: "no-referrer",
    });
    frame.setAttribute("sandbox", "allow-scripts allow-same-origin allow-popups");
    item.append(frame);
    button.setAttribute("aria-expanded", "true");
    this.playing = { item, frame, button };
  }
}

function scoreText(score) {
  const size = Math.abs(score);
  const text = size >= 100 ? score.toFixed(0) : size >= 1 ? score.toFixed(2) : score.toPrecision(2);
  return text.replace("-", "−");
}

function why(track) {
  const reason = track.reason;
  if (reason?.kind === "track") return ["Goes with ", element("em", {}, reason.name ?? "a track of yours")];
  if (reason?.kind === "title") return ["Fits the title"];
  if (reason?.kind === "popular") return [`In ${track.popularity.toLocaleString("en")} playlists`];
  return track.popularity ? [`In ${track.popularity.toLocaleString("en")} playlists`] : ["In no playlist yet"];
}
