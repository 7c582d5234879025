/** Grey windows: stored numbers to the picture's pixels. */

const OPAQUE = 0xff000000;
const table = new Uint32Array(65536);
let made = "";

/** For every stored int16 number (+ 32768) its pixel, as lib/imaging/windows.py windows it. */
function lookup({ low, high }, { slope, intercept }) {
  const name = `${low} ${high} ${slope} ${intercept}`;
  if (name === made) return table;
  made = name;
  const per = 255 / (high - low);
  for (let i = 0; i < 65536; i++) {
    const value = ((i - 32768) * slope + intercept - low) * per;
    const grey = value <= 0 ? 0 : value >= 255 ? 255 : Math.trunc(value);
    table[i] = OPAQUE | grey * 0x010101;
  }
  return table;
}

/** Paint a slice's stored numbers into `pixels`, a Uint32Array of as many pixels. Colours stay as they are. */
export function paint(values, window, stored, pixels) {
  if (stored.colour) {
    for (let p = 0, at = 0; p < pixels.length; p++, at += 3) {
      pixels[p] = OPAQUE | values[at + 2] << 16 | values[at + 1] << 8 | values[at];
    }
    return;
  }
  const shades = lookup(window, stored);
  for (let p = 0; p < pixels.length; p++) pixels[p] = shades[values[p] + 32768];
}

/** The window after the pointer moved by (dx, dy): to the right wider, upwards brighter (a lower level). */
export function dragged({ low, high }, dx, dy, range) {
  const width = Math.max(range / 1000, (high - low) + dx * range / 600);
  const level = (low + high) / 2 + dy * range / 600;
  return { name: "own", low: level - width / 2, high: level + width / 2 };
}

export const windowText = ({ name, low, high }) => {
  const short = value => Math.abs(value) < 10 && !Number.isInteger(value) ? value.toFixed(2) : String(Math.round(value));
  return `L ${short((low + high) / 2)}  W ${short(high - low)}${name ? `  ${name}` : ""}`.replaceAll("-", "−");
};
