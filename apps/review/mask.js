/** A mask in COCO run lengths (pycocotools maskApi.c, rleFrString): down the columns, background first. */

export class Mask {
  /** `turns`: the positions, column by column, at which mask and background change; ascending. */
  constructor(height, width, turns) {
    this.height = height;
    this.width = width;
    this.turns = turns;
  }

  /** From {size: [height, width], counts}. */
  static of({ size: [height, width], counts }) {
    const lengths = [], turns = [];
    let end = 0;
    for (let at = 0; at < counts.length;) {
      let value = 0, shift = 0, piece;
      do {
        piece = counts.charCodeAt(at++) - 48;
        value |= (piece & 31) << shift;
        shift += 5;
      } while (piece & 32);
      if (piece & 16 && shift < 32) value |= -1 << shift;
      if (lengths.length > 2) value += lengths[lengths.length - 2];
      lengths.push(value);
      end += value;
      turns.push(end);
    }
    if (end === height * width) turns.pop();
    return new Mask(height, width, turns);
  }

  get area() {
    const { turns } = this;
    let sum = 0;
    for (let i = 0; i < turns.length; i += 2) sum += (turns[i + 1] ?? this.height * this.width) - turns[i];
    return sum;
  }

  /** What is in one of the two but not in both: the places where either changes, but for those where both do. */
  xor(other) {
    const a = this.turns, b = other.turns, merged = [];
    for (let i = 0, j = 0; i < a.length || j < b.length;) {
      const next = Math.min(a[i] ?? Infinity, b[j] ?? Infinity);
      let odd = false;
      for (; a[i] === next; i++) odd = !odd;
      for (; b[j] === next; j++) odd = !odd;
      if (odd) merged.push(next);
    }
    return new Mask(this.height, this.width, merged);
  }

  /** 0 or 1 per pixel, row by row; made once. */
  get pixels() {
    if (this.made) return this.made;
    const { height, width, turns } = this;
    const pixels = new Uint8Array(height * width);
    for (let i = 0; i < turns.length; i += 2) {
      const end = turns[i + 1] ?? height * width;
      for (let p = turns[i], y = p % height, x = (p - y) / height; p < end; p++) {
        pixels[y * width + x] = 1;
        if (++y === height) { y = 0; x++; }
      }
    }
    return this.made = pixels;
  }

  /** The sides of mask pixels that face the background, in pixels. */
  get border() {
    const { height, width, pixels } = this;
    const path = new Path2D();
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
    for (let y = 0; y <= height; y++) {
      for (let x = 0; x <= width; x++) {
        if (inside(x - 1, y) !== inside(x, y)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
        if (inside(x, y - 1) !== inside(x, y)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      }
    }
    return path;
  }
}
