// What is said of a token, of an expert, of a cell of the map? What comes from data is always text, never markup.

const WHOLE = new Intl.NumberFormat("en-GB");
/** A piece as it is shown: line ends have a sign, and what belongs to the character before is a circle. */
const visible = (piece) => piece.replaceAll("\r", "␍").replaceAll("\n", "↵\n") || "◌";
/** The same in one line, with signs for spaces. */
const inOneLine = (piece) => visible(piece).replaceAll("\n", "").replaceAll("\t", "⇥").replaceAll(" ", "␣");

/** An element with properties and children. */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** What is known of a token besides its experts. */
function factsOf({ pieces, losses, layers, numLayers }, router, token) {
  const facts = { loss: `${NUMBER.format(losses[token])} nats`, probability: PERCENT.format(Math.exp(-losses[token])) };
  if (layers) facts["layers taken"] = `${NUMBER.format(layers[token])} of ${numLayers}`;
  if (router) facts["distinct experts"] = `${router.distinct[token]} of ${WHOLE.format(router.numColumns)}`;
  const list = Object.entries(facts).map(([name, fact]) => make("div", {}, make("dt", {}, name), make("dd", {}, fact)));
  const place = ` token ${WHOLE.format(token + 1)} of ${WHOLE.format(pieces.length)}`;
  return [make("p", {}, make("code", {}, inOneLine(pieces[token])), place), make("dl", {}, ...list)];
}

/** A table with a row for each depth and a button for each choice; `fillChoices` fills it. */
function tableOfChoices({ depths, numGroups, numChoices }) {
  const title = (group) => make("th", {}, numGroups > 1 ? group : "experts, the first choice first");
  const cell = () => make("td", {}, ...listOf(numChoices, () => make("button", { className: "chip", tabIndex: -1 })));
  const rows = depths.map((depth) => make("tr", {}, make("th", { scope: "row" }, depth), ...listOf(numGroups, cell)));
  rows[0].querySelector(".chip").tabIndex = 0;
  const head = make("tr", {}, make("th", {}, numGroups > 1 ? "depth, head" : "depth"), ...listOf(numGroups, title));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

/** Show what a token chooses; the more depths choose an expert, the stronger its colour. */
function fillChoices(table, router, token, picked, ramp) {
  const counts = repeatsOf(router, token);
  const columns = router.depths.flatMap((_, repeat) => chosen(router, token, repeat));
  table.querySelectorAll(".chip").forEach((chip, place) => {
    const [column, count] = [columns[place], counts.get(columns[place]) ?? 0];
    const nobody = column === null;
    const { fill, ink } = colour(ramp, count && 0.1 + (0.6 * (count - 1)) / router.numRepeats);
    const title = nobody ? "nobody" : `${nameOf(router, column)}: chosen at ${count} of ${router.numRepeats} depths`;
    const textContent = nobody ? "–" : column % router.numExperts;
    Object.assign(chip, { textContent, title, value: column ?? "", ariaPressed: !nobody && column === picked });
    Object.assign(chip.style, { backgroundColor: fill, color: ink });
  });
}

/** A row for each depth, with a bar for the share of an expert. */
function barsOf(router, column) {
  const [profile, even] = [profileOf(router, column), 1 / router.numExperts];
  const longest = Math.max(...profile, even);
  return profile.map((share, repeat) => {
    const bar = make("td", { className: "bar" });
    bar.style.setProperty("--length", share / longest);
    bar.style.setProperty("--even", even / longest);
    return make("tr", {}, make("th", {}, router.depths[repeat]), bar, make("td", {}, PERCENT.format(share)));
  });
}

function sentenceOf(router, cell) {
  if (!cell) return "Dots: the choices of the token in view. A line through a column: never used.";
  const place = cell.repeat * router.numColumns + cell.column;
  const [share, count] = [PERCENT.format(router.shares[place]), WHOLE.format(router.usage[place])];
  return `Depth ${router.depths[cell.repeat]}, ${nameOf(router, cell.column)}: ${share}, ${count} times`;
}
