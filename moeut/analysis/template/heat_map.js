// How much is each expert used at each depth? A picture with a row for each depth and a column for each expert.

const [ROW, LEFT, BOTTOM, GAP, NARROWEST, WIDEST] = [18, 44, 38, 8, 3, 44];
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const within = (value, count) => Math.min(Math.max(value, 0), count - 1);

/**
 * A heat map on a canvas → the function that changes what it shows: router, order (of columns), ramp, high (the share
 * that has the last colour), column (the picked one), token (whose choices are dots) and cursor (a row and a place).
 * describe: told which cell is pointed at, or null. pick: told which column is picked.
 */
function heatMap(canvas, describe, pick) {
  const shown = { router: null, column: null, token: null, cursor: null };
  const show = (changes) => {
    Object.assign(shown, changes);
    if (shown.router) draw(canvas, shown, grid(canvas, shown.router));
  };
  const move = (cursor) => {
    show({ cursor });
    describe(cursor && { repeat: cursor.row, column: shown.order[cursor.place] });
  };
  canvas.addEventListener("pointermove", (event) => move(cellAt(event, shown, grid(canvas, shown.router))));
  canvas.addEventListener("click", () => shown.cursor && pick(shown.order[shown.cursor.place]));
  for (const end of ["pointerleave", "blur"]) canvas.addEventListener(end, () => move(null));
  canvas.addEventListener("keydown", (event) => {
    const { router, order, column, cursor } = shown;
    const { row, place } = cursor ?? { row: 0, place: Math.max(order.indexOf(column), 0) };
    const [down, right] = STEPS[event.key] ?? [];
    const next = { row: within(row + down, router.numRepeats), place: within(place + right, order.length) };
    if (event.key in STEPS) move(next);
    else if (event.key === "Enter" || event.key === " ") pick(order[place]);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => show({})).observe(canvas.parentElement);
  return show;
}

function cellAt({ offsetX, offsetY }, { router, order }, { left, width }) {
  const row = Math.floor(offsetY / ROW);
  const place = order.findIndex((_, place) => offsetX >= left(place) && offsetX < left(place) + width);
  return row >= 0 && row < router.numRepeats && place >= 0 ? { row, place } : null;
}

/** Where the cells are, in pixels; groups stand apart. */
function grid(canvas, { numColumns, numExperts, numGroups, numRepeats }) {
  const gaps = (numGroups - 1) * GAP;
  const room = (canvas.parentElement.clientWidth - LEFT - gaps - 2) / numColumns;
  const width = Math.min(Math.max(room, NARROWEST), WIDEST);
  const left = (place) => LEFT + place * width + Math.floor(place / numExperts) * GAP;
  const bottom = numRepeats * ROW;
  return { width, left, bottom, size: [LEFT + numColumns * width + gaps + 2, bottom + BOTTOM] };
}

function draw(canvas, shown, cells) {
  const { order, column, token, cursor } = shown;
  const { color, fontFamily } = getComputedStyle(canvas);
  const [width, height] = cells.size;
  Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  Object.assign(pen, { strokeStyle: color, fillStyle: color, font: `11px ${fontFamily}`, textBaseline: "middle" });
  drawAxes(pen, shown, cells);
  order.forEach((column, place) => drawColumn(pen, shown, cells, column, place));
  if (token !== null) drawChoices(pen, shown, cells);
  for (const [lineWidth, strokeStyle] of [[4, "#000"], [1.5, "#fff"]]) {
    Object.assign(pen, { lineWidth, strokeStyle });
    if (column !== null) pen.strokeRect(cells.left(order.indexOf(column)), 1, cells.width, cells.bottom - 2);
    if (cursor) pen.strokeRect(cells.left(cursor.place), cursor.row * ROW, cells.width, ROW);
  }
}

/** Numbers of depths, and of heads or experts: as many as have room, or in another order than theirs all or none. */
function drawAxes(pen, { router: { depths, numGroups, numExperts }, order }, { left, width, bottom }) {
  const write = (text, textAlign, x, y) => Object.assign(pen, { textAlign }).fillText(text, x, y);
  depths.forEach((depth, repeat) => write(depth, "right", LEFT - 7, (repeat + 0.5) * ROW));
  write("depth", "right", LEFT - 7, bottom + 11);
  const heads = numGroups > 1;
  write(heads ? "head, with its experts" : "expert", "left", LEFT, bottom + 28);
  const every = heads ? numExperts : [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step * width >= 26);
  if (every > 1 && !heads && order.some((column, place) => column !== place)) return;
  for (let place = 0; place < order.length; place += every) {
    const middle = left(place) + ((heads ? numExperts : 1) * width) / 2;
    write(heads ? place / numExperts : order[place], "center", middle, bottom + 11);
  }
}

function drawColumn(pen, { router, ramp, high }, { left, width, bottom }, column, place) {
  const [from, to] = [left(place), left(place) + width].map(Math.round);
  const profile = profileOf(router, column);
  profile.forEach((share, repeat) => {
    pen.fillStyle = colour(ramp, share / high).fill;
    pen.fillRect(from, repeat * ROW, to - from, ROW);
  });
  if (!sum(profile)) pen.strokeRect((from + to) / 2, 3, 0, bottom - 6);
}

/** Dots on what a token chooses. */
function drawChoices(pen, { router, order, ramp, high, token }, { left, width }) {
  router.depths.forEach((_, repeat) => {
    for (const column of chosen(router, token, repeat).filter((column) => column !== null)) {
      pen.fillStyle = colour(ramp, router.shares[repeat * router.numColumns + column] / high).ink;
      pen.beginPath();
      pen.arc(left(order.indexOf(column)) + width / 2, (repeat + 0.5) * ROW, Math.min(3, width / 2), 0, 7);
      pen.fill();
    }
  });
}
