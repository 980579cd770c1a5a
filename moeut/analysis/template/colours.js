// Which colour has a number? Colours differ in lightness before all else, so that everybody can tell them apart.

const RAMPS = {
  light: ["#f4f5f0", "#d3e8cd", "#8fcdb9", "#3fa3b1", "#28699d", "#22306e"],
  dark: ["#242a32", "#1f3d5e", "#1f6685", "#2f9691", "#7fca90", "#e9f3ad"],
};
const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** 0 … 1 → a colour on the ramp, and black or white, whichever is easier to read upon it. */
function colour(ramp, share) {
  const place = Math.min(Math.max(share || 0, 0), 1) * (ramp.length - 1);
  const below = Math.min(Math.floor(place), ramp.length - 2);
  const [from, to] = [channels(ramp[below]), channels(ramp[below + 1])];
  const [red, green, blue] = from.map((value, channel) => value + (place - below) * (to[channel] - value));
  const luminance = 0.2126 * red ** 2.2 + 0.7152 * green ** 2.2 + 0.0722 * blue ** 2.2;
  return { fill: `rgb(${red} ${green} ${blue})`, ink: luminance > 0.18 * 255 ** 2.2 ? "#000" : "#fff" };
}

/** What the colours stand for: a title, the ramp, and the labels of its two ends. */
function drawLegend(node, ramp, { title, ends: [low, high] }) {
  const band = make("span", { className: "ramp" });
  band.style.background = `linear-gradient(to right, ${ramp.join(", ")})`;
  node.replaceChildren(title, make("b", {}, low), band, make("b", {}, high));
}
