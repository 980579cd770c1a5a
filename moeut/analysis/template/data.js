// What is on the page? The arrays that moeut/analysis/page.py wrote, and what is counted from them.
// A column is an expert's number among those of all groups (heads): group · numExperts + expert.

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array, float64: Float64Array };
const sum = (values) => values.reduce((total, value) => total + value, 0);
const listOf = (length, item) => Array.from({ length }, (_, place) => item(place));
/** The share of a column in each repeat. */
const profileOf = ({ depths, shares, numColumns }, column) => depths.map((_, row) => shares[row * numColumns + column]);

function load(text) {
  const page = JSON.parse(text);
  for (const model of page.models) {
    model.losses = decode(model.losses);
    model.layers = model.layers && decode(model.layers);
    model.routers = model.routers.map(loadRouter);
  }
  return page;
}

function loadRouter(written) {
  const [numTokens, numRepeats, numGroups, numChoices] = written.experts.shape;
  const router = {
    ...written, numTokens, numRepeats, numGroups, numChoices, numColumns: numGroups * written.numExperts,
    key: `layer ${written.layer} · ${written.name.replaceAll("_", " ")}`,
    experts: decode(written.experts), usage: decode(written.usage),
  };
  router.shares = shares(router);
  router.distinct = listOf(numTokens, (token) => repeatsOf(router, token).size);
  return router;
}

function decode({ dtype, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return new ARRAYS[dtype](bytes.buffer);
}

/** The share of each expert in what its group selected in a repeat, [repeat · numColumns + column]; 0 for 0/0. */
function shares({ usage, numExperts }) {
  return usage.map((count, place) => {
    const first = place - (place % numExperts);
    return count / (sum(usage.subarray(first, first + numExperts)) || 1);
  });
}

/** The columns that a token chose in one repeat, in the order of choice; null where nobody was chosen. */
function chosen({ experts, numRepeats, numGroups, numChoices, numExperts }, token, repeat) {
  const first = (token * numRepeats + repeat) * numGroups * numChoices;
  return listOf(numGroups * numChoices, (place) => {
    const expert = experts[first + place];
    return expert < numExperts ? Math.floor(place / numChoices) * numExperts + expert : null;
  });
}

/** In how many repeats a token chose each column that it chose at all. */
function repeatsOf(router, token) {
  const counts = new Map();
  for (let repeat = 0; repeat < router.numRepeats; repeat++) {
    for (const column of chosen(router, token, repeat)) counts.set(column, (counts.get(column) ?? 0) + 1);
  }
  counts.delete(null);
  return counts;
}

/** In how many repeats each token chose one column. */
function usesOf({ experts, numTokens, numRepeats, numGroups, numChoices, numExperts }, column) {
  const counts = new Array(numTokens).fill(0);
  const inRepeat = numGroups * numChoices;
  for (let first = Math.floor(column / numExperts) * numChoices; first < experts.length; first += inRepeat) {
    const used = experts.subarray(first, first + numChoices).includes(column % numExperts);
    if (used) counts[Math.floor(first / (inRepeat * numRepeats))] += 1;
  }
  return counts;
}

/** All columns: in order, or in each group from those of early repeats to those of late ones, the unused ones last. */
function columnsOf(router, earlyToLate) {
  const centre = (profile) => sum(profile.map((share, repeat) => repeat * share)) / sum(profile);
  const places = listOf(router.numColumns, (column) => {
    const late = centre(profileOf(router, column));
    return Math.floor(column / router.numExperts) + (Number.isNaN(late) ? 0.999 : late / (router.numRepeats + 1));
  });
  return [...places.keys()].sort((one, other) => (earlyToLate ? places[one] - places[other] : one - other));
}

function nameOf({ numGroups, numExperts }, column) {
  const expert = `expert ${column % numExperts}`;
  return numGroups > 1 ? `head ${Math.floor(column / numExperts)}, ${expert}` : expert;
}
