/** A run's masks cut along another plane. Axes as lib/imaging/planes.py has them: a view's columns, rows and slices lie along
 *  right (r), anterior (a) and superior (s); rows run down, from anterior or superior. */

import { Mask } from "./mask.js";

export const AXES = {
  axial: { columns: "r", rows: "a", normal: "s" },
  coronal: { columns: "r", rows: "s", normal: "a" },
  sagittal: { columns: "a", rows: "s", normal: "r" },
};

/** The mask that `slices` (of `from`, run.js) make on slice `index` of plane `to`; null when it is empty there. */
export function across(slices, from, to, index, planes) {
  const source = planes[from], goal = planes[to], axes = AXES[from];
  const pixels = new Uint8Array(goal.width * goal.height);
  const masks = new Map(slices.filter(slice => slice.mask).map(slice => [slice.index, slice.mask]));
  const place = { [AXES[to].normal]: (index + 0.5) / goal.slices };
  let any = false;
  for (let y = 0; y < goal.height; y++) {
    place[AXES[to].rows] = 1 - (y + 0.5) / goal.height;
    for (let x = 0; x < goal.width; x++) {
      place[AXES[to].columns] = (x + 0.5) / goal.width;
      const mask = masks.get(Math.floor(place[axes.normal] * source.slices));
      if (!mask) continue;
      const column = Math.floor(place[axes.columns] * source.width);
      const row = Math.floor((1 - place[axes.rows]) * source.height);
      if (mask.pixels[row * source.width + column]) {
        pixels[y * goal.width + x] = 1;
        any = true;
      }
    }
  }
  return any ? ofPixels(goal.height, goal.width, pixels) : null;
}

function ofPixels(height, width, pixels) {
  const turns = [];
  let before = 0;
  for (let p = 0; p < pixels.length; p++) {
    const here = pixels[p % height * width + Math.floor(p / height)];
    if (here !== before) turns.push(p);
    before = here;
  }
  return new Mask(height, width, turns);
}

/** The middle of a mask as `{column axis, row axis}`, each 0..1 from left, posterior or inferior. */
export function middle(mask, plane) {
  let x = 0, y = 0, all = 0;
  mask.pixels.forEach((is, p) => {
    if (!is) return;
    x += p % mask.width;
    y += Math.floor(p / mask.width);
    all++;
  });
  return { [AXES[plane].columns]: (x / all + 0.5) / mask.width, [AXES[plane].rows]: 1 - (y / all + 0.5) / mask.height };
}

/** What lies at the top, bottom, left and right of a view. */
export const EDGES = { axial: "APLR", coronal: "SILR", sagittal: "SIPA" };
