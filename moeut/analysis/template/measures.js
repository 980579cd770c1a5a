// What can tokens be coloured by? A number for each token, and a scale that is the same for all models on the page.

const NUMBER = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3 });
const PERCENT = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3, style: "percent" });
/** A router in all models that have it. */
const alike = (models, { key }) => models.flatMap(({ routers }) => routers.filter((router) => router.key === key));

/** What applies to a model, one of its routers (if it has any) and one of that one's columns (if one is picked). */
function measuresOf({ models }, model, router, column) {
  const measure = (key, label, title, values, scale) => ({ key, label, title, values, ...scale });
  const found = [measure("loss", "Loss", "loss, nats", model.losses, lossScale(models))];
  if (model.layers) {
    const all = models.map(({ layers }) => layers ?? []);
    found.push(measure("layers", "Halting depth", "layers taken", model.layers, scaleOf(all)));
  }
  if (router && router.numRepeats > 1) {
    const all = alike(models, router).map(({ distinct }) => distinct);
    found.push(measure("distinct", "Distinct experts", "distinct experts", router.distinct, scaleOf(all)));
  }
  if (column !== null) {
    const [name, values] = [nameOf(router, column), usesOf(router, column)];
    found.push(measure("use", name, `depths that choose ${name}`, values, scaleOf([[0, router.numRepeats]])));
  }
  return found;
}

/** From 0 to what 98 in 100 tokens do not exceed. */
function lossScale(models) {
  const losses = models.flatMap((model) => [...model.losses]).filter(Number.isFinite).sort((one, other) => one - other);
  const high = losses[Math.floor(0.98 * (losses.length - 1))] ?? 0;
  return { low: 0, high, ends: ["0", `${high < losses.at(-1) ? "≥ " : ""}${NUMBER.format(high)}`] };
}

function scaleOf(arrays) {
  const values = arrays.flatMap((array) => [...array]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return { low, high, ends: [NUMBER.format(low), NUMBER.format(high)] };
}
