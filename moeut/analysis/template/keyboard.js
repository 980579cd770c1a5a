// How does one get around without a mouse? Many elements are one tab stop, and arrow keys move among them.

/** Let arrow keys, Home and End move the focus among those elements in a container that match a selector. */
function rove(container, selector) {
  container.addEventListener("keydown", (event) => {
    const items = [...container.querySelectorAll(selector)];
    const next = target(items, items.indexOf(event.target), event.key);
    if (next) event.preventDefault();
    next?.focus();
  });
  container.addEventListener("focusin", ({ target: item }) => {
    for (const other of container.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    item.tabIndex = 0;
  });
}

function target(items, place, key) {
  switch (key) {
    case "ArrowLeft": return items[place - 1];
    case "ArrowRight": return items[place + 1];
    case "ArrowUp": return onNextLine(items.slice(0, place).reverse(), items[place]);
    case "ArrowDown": return onNextLine(items.slice(place + 1), items[place]);
    case "Home": return items[0];
    case "End": return items.at(-1);
  }
}

/** Of the items that follow one, the nearest to it among those of the first other line. */
function onNextLine(items, item) {
  const here = middle(item);
  const first = items.find((other) => Math.abs(middle(other).y - here.y) > here.height / 2);
  const line = items.filter((other) => first && Math.abs(middle(other).y - middle(first).y) < here.height / 2);
  const distance = (other) => Math.abs(middle(other).x - here.x);
  return line.reduce((best, other) => (distance(other) < distance(best) ? other : best), first);
}

/** Where an item begins; one that is broken at a line's end has several boxes. */
function middle(item) {
  const { left, right, top, bottom } = item.getClientRects()[0];
  return { x: (left + right) / 2, y: (top + bottom) / 2, height: bottom - top };
}
