"use strict";
// The page of an archive. data.js, codes.js, names.js and perhaps places.js have filled `mrhash`.
// Rows are places in the order in which the page shows items; numbers are those of the archive.
// What is shown follows from `state`, and the address says the same, so that it can be sent on.

const archive = globalThis.mrhash;
const { hashBit, grid, kinds, names, numbers, kindOf } = archive;
const count = numbers.length;
const codes = new Uint32Array(bytesOf(archive.codes).buffer);
const width = codes.length / count;  // words of a code
const rowOf = new Map(numbers.map((number, row) => [number, row]));
const byNumber = Uint32Array.from(numbers.keys()).sort((a, b) => numbers[a] - numbers[b]);
const title = document.title, lowered = [];  // names in lower case, once somebody searches by name
const PAGE = 96, TOP = 50, MOST = 1000;  // images a page, neighbours by default and at most
const $ = (id) => document.getElementById(id);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function spoken(number) {
  return number.toLocaleString("en");  // 1,234
}

function plural(number, word) {
  return `${spoken(number)} ${word}${number === 1 ? "" : "s"}`;
}

// ---------------------------------------------------------------- search

function popcount(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

// The `top` nearest other items at most `most` bits away, of class number `kind` (or null for all):
// exact, equal distances by number. `sharing` items of those searched have the last distance.
function search(row, top, kind, most) {
  const distances = new Uint16Array(count), histogram = new Uint32Array(hashBit + 1);
  for (let other = 0; other < count; other++) {
    let distance = 0;
    for (let word = 0; word < width; word++) {
      distance += popcount(codes[row * width + word] ^ codes[other * width + word]);
    }
    // Files that were asked for have numbers below 0, and are no answers.
    const left = other === row || numbers[other] < 0
                 || (kind !== null && kindOf[other] !== kind) || distance > most;
    distances[other] = left ? 0xffff : distance;
    if (!left) histogram[distance]++;
  }
  // Where the items of each distance begin: a counting sort, which keeps the order by number.
  const begins = new Uint32Array(hashBit + 2);
  histogram.forEach((number, distance) => { begins[distance + 1] = begins[distance] + number; });
  const found = begins[hashBit + 1], next = begins.slice();
  const rows = new Array(Math.min(top, found));
  for (const other of byNumber) {
    const distance = distances[other];
    if (distance <= hashBit && next[distance] < rows.length) rows[next[distance]++] = other;
  }
  const answers = rows.map((other) => distances[other]);
  const last = answers.at(-1);
  return { rows, distances: answers, sharing: rows.length ? histogram[last] : 0,
           inside: rows.length ? rows.length - begins[last] : 0 };
}

archive.neighbours = (number, top) => {
  const { rows, distances } = search(rowOf.get(number), top, null, hashBit);
  return rows.map((row, at) => ({ number: numbers[row], distance: distances[at] }));
};

// ---------------------------------------------------------------- state and address

let state = stateOf(location.hash);

function whole(text, least, most, otherwise) {
  return /^\d+$/.test(text ?? "") ? Math.min(most, Math.max(least, Number(text))) : otherwise;
}

function stateOf(hash) {
  const given = new URLSearchParams(hash.slice(1));
  return { item: given.get("item"), kind: given.get("class"), name: given.get("name") ?? "",
           top: whole(given.get("top"), 1, MOST, TOP), page: whole(given.get("page"), 1, 1e6, 1),
           max: whole(given.get("max"), 0, hashBit, hashBit) };
}

function addressOf({ item, kind, name, top, page, max }) {
  const said = new URLSearchParams();
  if (item !== null) said.set("item", item);
  if (item !== null || top !== TOP) said.set("top", top);
  if (kind !== null) said.set("class", kind);
  if (max !== hashBit) said.set("max", max);
  if (name) said.set("name", name);
  if (page > 1) said.set("page", page);
  return `#${said}`;
}

// A step is something one goes back from. All else replaces the address, a little later: browsers
// refuse an address for every move of a slider.
let later = 0;
function go(change, step = false) {
  clearTimeout(later);
  const before = addressOf(state), depth = history.state?.depth ?? 0;
  state = { ...state, ...change };
  const after = addressOf(state);
  if (step && after !== before) {
    history.replaceState({ depth }, "", before);
    history.pushState({ depth: depth + 1 }, "", after);
  } else {
    later = setTimeout(() => history.replaceState({ depth }, "", after), 250);
  }
  render(step);
}

function back() {
  if (state.item === null) return;
  if (history.state?.depth) history.back();
  else go({ item: null }, true);
}

const openItem = (row) => go({ item: String(numbers[row]) }, true);

// ---------------------------------------------------------------- images

// Sheets of thumbnails are large and many: they are loaded when an image comes near the window.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    target.style.backgroundImage = `url("${archive.part}/sheet-${target.dataset.sheet}.jpg")`;
    near.unobserve(target);
  }
}, { rootMargin: "400px" });

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function kindName(row) {
  return kindOf[row] < 0 ? null : kinds[kindOf[row]];
}

function picture(row) {
  const made = element("span", "picture"), place = row % (grid * grid);
  const [x, y] = [place % grid, Math.floor(place / grid)].map((at) => (100 * at) / (grid - 1));
  made.setAttribute("role", "img");
  const kind = kindName(row);
  made.setAttribute("aria-label", names[row] + (kind === null ? "" : `, class ${kind}`));
  made.dataset.sheet = Math.floor(row / (grid * grid));
  made.style.backgroundSize = `${100 * grid}%`;
  made.style.backgroundPosition = `${x}% ${y}%`;
  return made;
}

function card(row, distance) {
  const item = document.createElement("li"), button = element("button", "");
  button.type = "button";
  button.dataset.row = row;
  button.title = names[row];
  button.tabIndex = -1;
  button.append(picture(row));
  if (distance !== undefined) button.append(element("span", "distance", `distance ${distance}`));
  // The label of the picture has said the name in full.
  const parts = names[row].split("/"), tile = /^\d+_\d+$/.test(parts.at(-1));  // row_column
  const short = parts.slice(tile ? -2 : -1).join("/").replace(/\.(jpe?g|png|tiff?|bmp|webp|jp2)$/i, "");
  const name = element("span", "name", short || names[row]);
  name.setAttribute("aria-hidden", "true");
  button.append(name);
  if (kindName(row) !== null) {
    const kind = element("span", "kind", kindName(row));
    kind.setAttribute("aria-hidden", "true");
    button.append(kind);
  }
  item.append(button);
  return item;
}

// ---------------------------------------------------------------- what is shown

let shown = null;  // the row whose neighbours are shown

function render(moved) {
  const before = shown, kind = state.kind === null ? null : kinds.indexOf(state.kind);
  const known = kind === null || kind >= 0, missing = [];
  shown = state.item === null ? null : rowOf.get(whole(state.item, 0, Infinity, -1)) ?? null;
  if (state.item !== null && shown === null) {
    missing.push(`There is no item ${state.item} on this page.`);
  }
  if (!known) missing.push(`There is no class ${state.kind} on this page.`);
  $("notice").textContent = missing.join(" ");
  document.title = shown === null ? title : `${names[shown]} - ${title}`;
  $("query").hidden = $("legend-query").hidden = shown === null;
  if ($("name").value !== state.name) $("name").value = state.name;
  $("kind").value = known && state.kind !== null ? `=${state.kind}` : "";
  if (document.activeElement !== $("top")) $("top").value = state.top;
  $("max").value = state.max;
  $("max-shown").textContent = state.max;
  const lit = shown === null ? showGallery(known ? kind : null) : showAnswers(known ? kind : null);
  const filtered = state.name !== "" || (known && kind !== null);
  $("legend-lit").textContent = shown !== null ? "neighbours" : filtered ? "found" : "on this page";
  map?.show(lit, shown, shown !== null || filtered);
  if (moved) moveFocus(before);
}

function showCards(cards) {
  near.disconnect();
  if (shown !== null) $("query-picture").replaceChildren(picture(shown));
  $("cards").replaceChildren(...cards);
  for (const each of document.querySelectorAll(".picture")) near.observe(each);
  if (cards.length) cards[0].firstChild.tabIndex = 0;
}

function showGallery(kind) {
  const wanted = state.name.toLowerCase(), rows = [];
  if (wanted && !lowered.length) names.forEach((name) => lowered.push(name.toLowerCase()));
  for (let row = 0; row < count; row++) {
    const fits = kind === null || kindOf[row] === kind;
    if (fits && (!wanted || lowered[row].includes(wanted))) rows.push(row);
  }
  const pages = Math.max(1, Math.ceil(rows.length / PAGE)), page = Math.min(state.page, pages);
  const first = (page - 1) * PAGE, here = rows.slice(first, first + PAGE);
  $("told").textContent = !rows.length ? "No image has such a name and class."
    : pages === 1 ? plural(rows.length, "image")
    : `Images ${spoken(first + 1)} to ${spoken(first + here.length)} of ${spoken(rows.length)}`;
  $("pages").hidden = pages === 1;
  $("page-shown").textContent = `Page ${spoken(page)} of ${spoken(pages)}`;
  const targets = { first: 1, previous: page - 1, next: page + 1, last: pages };
  for (const button of $("pages").querySelectorAll("button")) {
    const target = targets[button.dataset.page];
    button.disabled = target < 1 || target > pages || target === page;
    button.onclick = () => go({ page: target }, true);
  }
  showCards(here.map((row) => card(row)));
  return wanted || kind !== null ? rows : here;  // all would be no news on the map
}

function showAnswers(kind) {
  const { rows, distances, sharing, inside } = search(shown, state.top, kind, state.max);
  $("query-name").textContent = names[shown];
  const place = map?.placeOf(shown);
  const facts = [["Number", numbers[shown]], ["Class", kindName(shown)], ["Place", place]];
  $("facts").replaceChildren(...facts.filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([word, value]) => [element("dt", "", word), element("dd", "", value)]));
  $("pages").hidden = true;
  const whose = kind === null ? "" : ` of class ${kinds[kind]}`;
  const sharers = sharing === 1 ? "One item has" : `${spoken(sharing)} items share`;
  const some = sharing === inside ? "" : `, ${inside} of them ${inside === 1 ? "is" : "are"} shown`;
  $("told").textContent = !rows.length
    ? `No other image${whose} is within distance ${state.max}.`
    : `${plural(rows.length, "neighbour")}${whose}. ${sharers} the last distance `
      + `(${distances.at(-1)})${some}.`;
  showCards(rows.map((row, at) => card(row, distances[at])));
  return rows;
}

// After a step: to the query, or in the gallery to the image that one comes from.
function moveFocus(before) {
  const from = before === null ? null : $("cards").querySelector(`[data-row="${before}"]`);
  if (shown !== null) {
    $("query-name").focus({ preventScroll: true });
    $("query").scrollIntoView({ block: "nearest" });
    if ($("query").getBoundingClientRect().top < 0) $("query").scrollIntoView();
  } else if (from) {
    focusCard(from);
  } else {
    $("told").scrollIntoView({ block: "nearest" });
  }
}

// ---------------------------------------------------------------- keys and fields

function focusCard(button) {
  for (const other of $("cards").querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

function moveAmongCards(event) {
  const buttons = [...$("cards").querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const top = buttons[0]?.offsetTop;
  const after = buttons.findIndex((button) => button.offsetTop !== top);
  const columns = after < 0 ? buttons.length : after;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const target = at < 0 ? buttons.find((button) => button.tabIndex === 0) : buttons[at + step];
  if (!step || !buttons.length || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  if (target) focusCard(target);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("name").focus();
    $("name").select();
  } else if (event.key === "Escape" && !(typing && typing.value && typing === $("name"))) {
    back();
  } else if (!typing && event.target !== $("canvas")) {
    moveAmongCards(event);
  }
});

$("cards").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) openItem(Number(button.dataset.row));
});
$("filters").addEventListener("submit", (event) => {  // Enter in the box: to the images
  event.preventDefault();
  const first = $("cards").querySelector("button");
  if (first) focusCard(first);
});
$("name").addEventListener("input", () => {
  const name = $("name").value;  // names are searched among all images, so a query is left
  go({ name, page: 1, item: null }, state.item !== null);
  $("name").focus();
});
$("kind").addEventListener("change", () => {
  go({ kind: $("kind").value ? $("kind").value.slice(1) : null, page: 1 }, true);
  $("kind").focus();
});
$("top").addEventListener("input", () => go({ top: whole($("top").value, 1, MOST, TOP) }));
$("top").addEventListener("blur", () => { $("top").value = state.top; });
$("max").addEventListener("input", () => go({ max: Number($("max").value) }));
$("all").addEventListener("click", () => go({ item: null }, true));
addEventListener("hashchange", () => {
  clearTimeout(later);
  state = stateOf(location.hash);
  render(true);
});

// ---------------------------------------------------------------- begin

$("summary").textContent = `${plural(count, "image")}, codes of ${hashBit} bits.`;
$("max").max = hashBit;
if (kinds.length) {
  const sizes = kinds.map(() => 0);
  for (const kind of kindOf) if (kind >= 0) sizes[kind]++;
  const options = kinds.map((kind, at) => new Option(`${kind} (${sizes[at]})`, `=${kind}`));
  $("kind").replaceChildren(new Option("All classes", ""), ...options);
  $("kind-field").hidden = false;
}
let map = null;
if (archive.corners) {
  $("map").hidden = false;
  const corners = new Float64Array(bytesOf(archive.corners).buffer);
  map = footprintMap($("canvas"), corners, archive.basemap, openItem);
  archive.map = map;
  if (map.placed < count) $("unplaced").textContent = `${spoken(count - map.placed)} have no place`;
  if (archive.basemap) {
    const { host, origin } = new URL(archive.basemap.replace(/[{}]/g, ""));
    Object.assign($("credit-host"), { href: origin, textContent: host });
    $("credit").hidden = false;
  }
}
render(false);
