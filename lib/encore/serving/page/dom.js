// Elements without HTML in strings: whatever a track is called is text.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties, attributes (names with a dash, `role`, `for`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const PATHS = {
  add: "M10 4v12M4 10h12",
  remove: "m5.5 5.5 9 9m0-9-9 9",
  grip: "M7 5.5h.01M13 5.5h.01M7 10h.01M13 10h.01M7 14.5h.01M13 14.5h.01",
  play: "M7 4.5v11l8.5-5.5z",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 20 20", class: `icon icon-${name}`, "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

/** A small picture for a track: its colour is that of the artist, its pattern its own. */
export function sleeve(track) {
  const pattern = hash(track.uri);
  const picture = svg("svg", { viewBox: "0 0 40 40", class: "sleeve", "aria-hidden": "true" });
  picture.style.setProperty("--hue", String(hash(track.artist ?? track.uri) % 360));
  picture.style.setProperty("--turn", `${(pattern % 4) * 90}deg`);
  picture.append(svg("rect", { class: "ground", width: 40, height: 40 }));
  const group = svg("g", { class: "turned" });
  const draw = [
    () => [30, 21, 12].map((r, i) => svg("circle", { cx: 0, cy: 40, r, class: i % 2 ? "ground" : "figure" })),
    () => [svg("path", { d: "M0 20a20 20 0 0 1 40 0z", class: "figure" }), svg("circle", { cx: 20, cy: 30, r: 6, class: "spot" })],
    () => [svg("circle", { cx: 20, cy: 20, r: 14, class: "figure" }), svg("circle", { cx: 20, cy: 20, r: 4, class: "spot" })],
    () => [6, 18, 30].map((x, i) => svg("rect", { x, y: i * 6, width: 6, height: 40, class: i === 1 ? "spot" : "figure" })),
    () => [svg("path", { d: "M0 0h20v20a20 20 0 0 1-20-20z", class: "figure" }), svg("path", { d: "M40 40H20V20a20 20 0 0 1 20 20z", class: "spot" })],
    () => [svg("path", { d: "M0 40 40 0v40z", class: "figure" }), svg("circle", { cx: 13, cy: 13, r: 6, class: "spot" })],
  ];
  group.append(...draw[(pattern >>> 3) % draw.length]());
  picture.append(group);
  return picture;
}

/** FNV-1a. */
function hash(text) {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return (value ^ (value >>> 15)) >>> 0;
}

/**
 * Replace the children of a list by elements, and let those that stay glide to their new places. If the child with the
 * focus is removed, the same control of the one that takes its place gets it.
 */
export function arrange(list, elements) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches || document.hidden;
  const before = new Map();
  if (!still) for (const child of list.children) before.set(child, child.offsetTop);
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const place = [...list.children].findIndex((child) => child.contains(focused));
  const wanted = new Set(elements);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  let at = list.firstElementChild;
  for (const child of elements) {
    if (child === at) at = at.nextElementSibling;
    else list.insertBefore(child, at);
  }
  if (focused && document.activeElement !== focused) {
    const next = elements[Math.min(place, elements.length - 1)];
    const control = focused.isConnected ? focused : next?.querySelector(`button.${focused.classList[0]}`);
    control?.focus({ preventScroll: focused.isConnected });
  }
  if (still) return;
  for (const child of elements) {
    const old = before.get(child);
    if (old === undefined) child.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 220, easing: "ease-out" });
    else if (old !== child.offsetTop) {
      child.animate([{ transform: `translateY(${old - child.offsetTop}px)` }, { transform: "none" }], {
        duration: 240,
        easing: "cubic-bezier(.2, .7, .2, 1)",
      });
    }
  }
}
