/** The slices of an image: fetched in chunks, those near the one shown first, kept up to a limit. */

import { bytes } from "./server.js";

const CHUNK_BYTES = 2 ** 21;
const KEPT_BYTES = 400 * 2 ** 20;
const AT_ONCE = 3;
/** Chunks fetched ahead, in the direction of the scrolling, and behind. */
const AHEAD = 8, BEHIND = 2;

export class Slices {
  /** `image`: as the server describes it; `arrived(plane)` is called when some have come, `failed(error)` when they cannot. */
  constructor(image, arrived, failed) {
    this.image = image;
    this.arrived = arrived;
    this.failed = failed;
    this.chunks = new Map();
    this.kept = 0;
    this.loading = new Map();
    this.wanted = [];
    this.last = { plane: "", index: 0, step: 1 };
    this.aborting = new AbortController();
  }

  bytesOf(plane) {
    const { width, height } = this.image.planes[plane];
    return width * height * (this.image.stored.colour ? 3 : 2);
  }

  perChunk(plane) {
    return Math.max(1, Math.min(64, Math.floor(CHUNK_BYTES / this.bytesOf(plane))));
  }

  /** A slice's stored numbers, row by row, or null while they are on their way. Fetches what is near it. */
  get(plane, index) {
    const per = this.perChunk(plane), number = Math.floor(index / per);
    this.want(plane, index, per, number);
    const chunk = this.chunks.get(`${plane}/${number}`);
    if (!chunk) return null;
    const length = this.bytesOf(plane), from = (index - number * per) * length;
    return this.image.stored.colour ? new Uint8Array(chunk, from, length) : new Int16Array(chunk, from, length / 2);
  }

  has(plane, index) {
    return this.chunks.has(`${plane}/${Math.floor(index / this.perChunk(plane))}`);
  }

  want(plane, index, per, number) {
    const { last } = this;
    if (last.plane === plane && index !== last.index) last.step = index > last.index ? 1 : -1;
    Object.assign(last, { plane, index });
    const count = Math.ceil(this.image.planes[plane].slices / per);
    const order = [number];
    for (let far = 1; far <= AHEAD; far++) {
      order.push(number + far * last.step);
      if (far <= BEHIND) order.push(number - far * last.step);
    }
    this.wanted = order.filter(at => at >= 0 && at < count).map(at => ({ plane, number: at, key: `${plane}/${at}` }));
    const here = this.chunks.get(`${plane}/${number}`);
    if (here) {  // the last one asked for is the last one to go
      this.chunks.delete(`${plane}/${number}`);
      this.chunks.set(`${plane}/${number}`, here);
    }
    this.fetchNext();
  }

  fetchNext() {
    while (this.loading.size < AT_ONCE) {
      const next = this.wanted.find(one => !this.chunks.has(one.key) && !this.loading.has(one.key));
      if (!next) return;
      this.loading.set(next.key, this.fetch(next));
    }
  }

  async fetch({ plane, number, key }) {
    const per = this.perChunk(plane);
    const path = `ibis/images/${encodeURIComponent(this.image.id)}/slices/${plane}/${number * per}?count=${per}`;
    try {
      const chunk = await bytes(path, this.aborting.signal);
      this.keep(key, chunk);
      this.loading.delete(key);
      this.arrived();
      this.fetchNext();
    } catch (error) {
      this.loading.delete(key);
      if (error.name !== "AbortError") this.failed(error);
    }
  }

  keep(key, chunk) {
    this.chunks.set(key, chunk);
    this.kept += chunk.byteLength;
    for (const [old, one] of this.chunks) {
      if (this.kept <= KEPT_BYTES || old === key) break;
      this.chunks.delete(old);
      this.kept -= one.byteLength;
    }
  }

  /** Nothing more of this image is needed. */
  close() {
    this.aborting.abort();
    this.wanted = [];
    this.chunks.clear();
  }
}
