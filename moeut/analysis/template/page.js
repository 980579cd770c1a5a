// What happens when? The state of the page, and what each choice changes.

const byId = (id) => document.getElementById(id);
const on = (id, type, act) => byId(id).addEventListener(type, act);
const page = load(byId("data").textContent);
const state = { model: 0, router: 0, measure: "loss", before: "loss", column: null, token: 0, hovered: null };
const model = () => page.models[state.model];
const router = () => model().routers[state.router];
const ramp = () => RAMPS[document.documentElement.style.colorScheme];
const placeOf = (node) => (node.role === "option" ? [...byId("text").children].indexOf(node) : null);
const describeCell = (cell) => (byId("cell").textContent = sentenceOf(router(), cell));
const showMap = heatMap(byId("map"), describeCell, pick);

function setTheme(isDark) {
  document.documentElement.style.colorScheme = isDark ? "dark" : "light";
  byId("theme").ariaPressed = isDark;
  setModel(state.model);
}

/** Show a model; the router, the picked expert and the token stay where the model has them too. */
function setModel(index) {
  const before = router()?.key;
  Object.assign(state, { model: index, hovered: null });
  const { pieces, numLayers, routers } = model();
  state.token = Math.min(state.token, pieces.length - 1);
  byId("summary").textContent = `Tokens: ${WHOLE.format(pieces.length)}. Executed layers: ${numLayers}.`;
  const token = (piece) => make("span", { role: "option", tabIndex: -1 }, visible(piece));
  byId("text").replaceChildren(...pieces.map(token));
  byId("router").replaceChildren(...routers.map(({ key }, value) => make("option", { value }, key)));
  [byId("routers").hidden, byId("none").hidden] = [routers.length < 2, routers.length > 0];
  for (const id of ["choices", "expert", "usage"]) byId(id).hidden = !routers.length;
  setRouter(Math.max(0, routers.findIndex(({ key }) => key === before)));
}

function setRouter(index) {
  state.router = index;
  if (state.column >= (router()?.numColumns ?? 0)) state.column = null;
  if (router()) {
    byId("router").value = index;
    byId("choices").replaceChildren(tableOfChoices(router()));
    byId("choices").style.setProperty("--digits", `${router().numExperts - 1}`.length);
    byId("corpus").textContent = `${router().key}, in ${page.corpus}`;
    byId("even").textContent = `The line is even use, ${PERCENT.format(1 / router().numExperts)}.`;
    describeCell(null);
    setOrder();
  }
  setColumn(state.column);
}

function setOrder() {
  const high = Math.max(...alike(page.models, router()).flatMap(({ shares }) => [...shares]));
  showMap({ router: router(), order: columnsOf(router(), byId("early").checked), ramp: ramp(), high, cursor: null });
  drawLegend(byId("map-legend"), ramp(), { title: "share of a depth’s choices", ends: ["0", PERCENT.format(high)] });
}

/** Pick an expert, or let go of the one that is picked. */
function pick(column) {
  const again = column === state.column;
  if (state.column === null) state.before = state.measure;
  state.measure = again ? state.before : "use";
  setColumn(again ? null : column);
}

function setColumn(column) {
  state.column = column;
  const found = measuresOf(page, model(), router(), column);
  if (!found.some(({ key }) => key === state.measure)) state.measure = "loss";
  radios(byId("colours"), found.map(({ key, label }) => [key, label]), state.measure, setMeasure);
  setMeasure(state.measure);
  showToken();
  byId("profile").hidden = byId("clear").hidden = column === null;
  byId("name").textContent = "Pick one: click its number at a token or its column in the map, or press Enter there.";
  if (router()) showMap({ column });
  if (column === null) return;
  const here = usesOf(router(), column).filter(Boolean).length;
  byId("name").textContent = `${nameOf(router(), column)}: ${WHOLE.format(here)} of this text’s tokens choose it`;
  byId("bars").replaceChildren(...barsOf(router(), column));
  const item = ([piece, lift]) => make("li", {}, make("code", {}, inOneLine(piece)), ` ×${NUMBER.format(lift)}`);
  byId("top").replaceChildren(...router().topTokens[column].map(item));
}

function setMeasure(key) {
  state.measure = key;
  const measure = measuresOf(page, model(), router(), state.column).find((one) => one.key === key);
  const used = state.column === null ? [] : usesOf(router(), state.column);
  [...byId("text").children].forEach((token, index) => {
    const { fill, ink } = colour(ramp(), (measure.values[index] - measure.low) / (measure.high - measure.low || 1));
    Object.assign(token.style, { backgroundColor: fill, color: ink });
    token.classList.toggle("uses", key !== "use" && used[index] > 0);
  });
  drawLegend(byId("legend"), ramp(), measure);
}

/** Say what is known of the token under the pointer, or else of the one that was chosen last. */
function showToken(changes) {
  Object.assign(state, changes);
  const [token, tokens] = [state.hovered ?? state.token, byId("text")];
  tokens.querySelector('[aria-selected="true"]')?.removeAttribute("aria-selected");
  Object.assign(tokens.children[state.token], { ariaSelected: true, tabIndex: 0 });
  byId("facts").replaceChildren(...factsOf(model(), router(), token));
  if (!router()) return;
  fillChoices(byId("choices"), router(), token, state.column, ramp());
  showMap({ token });
}

/** One of some choices, [value, label] each; a choice of one is not offered. */
function radios(group, choices, current, choose) {
  const labels = choices.map(([value, label]) => {
    const input = make("input", { type: "radio", name: group.id, value, checked: value === current });
    input.onchange = () => choose(value);
    return make("label", { title: label }, input, make("span", {}, label));
  });
  group.replaceChildren(group.querySelector("legend"), ...labels);
  group.hidden = choices.length < 2;
}

on("text", "focusin", ({ target }) => showToken({ token: placeOf(target) }));
on("text", "pointerover", ({ target }) => showToken({ hovered: placeOf(target) }));
on("text", "pointerleave", () => showToken({ hovered: null }));
on("choices", "click", ({ target }) => target.value && pick(Number(target.value)));
on("router", "change", ({ target }) => setRouter(target.selectedIndex));
on("early", "change", setOrder);
on("clear", "click", () => pick(state.column));
on("theme", "click", ({ target }) => setTheme(target.ariaPressed !== "true"));
document.addEventListener("keydown", ({ key }) => key === "Escape" && state.column !== null && pick(state.column));
rove(byId("text"), "span");
rove(byId("choices"), ".chip");
radios(byId("models"), page.models.map(({ name }, index) => [index, name]), 0, setModel);
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
