/** The series on the screen and its labelmap. The labelmap is MONAI Label's own: what either panel draws is in it. */

import { alike } from "./nrrd.js";

const ID = "1";
const PATIENCE_MS = 10_000;

export class Study {
  constructor(services, commandsManager) {
    this.services = services;
    this.commands = commandsManager;
  }

  /** Series Instance UID of the active viewport. */
  get series() {
    const { viewports, activeViewportId } = this.services.viewportGridService.getState();
    const shown = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
    const series = shown && this.services.displaySetService.getDisplaySetByUID(shown)?.SeriesInstanceUID;
    if (!series) throw new Error("No series is on the screen: drag one into a viewport.");
    return series;
  }

  get labelmap() {
    return this.services.segmentationService.getSegmentation(ID) && this.services.segmentationService.getLabelmapVolume(ID);
  }

  /** Throws unless the labelmap was made on the series on the screen: two phases of a CT have the same grid. */
  checkOwner() {
    if (this.labelmap.metadata.SeriesInstanceUID === this.series) return;
    throw new Error("What is drawn belongs to another series: choose the viewport that it was drawn in.");
  }

  get grid() {
    const { dimensions, direction, spacing, origin } = this.labelmap;
    const step = axis => [0, 1, 2].map(part => direction[3 * axis + part] * spacing[axis]);
    return { size: [...dimensions], directions: [0, 1, 2].map(step), origin: [...origin] };
  }

  get voxels() {
    return new Uint8Array(this.labelmap.voxelManager.getCompleteScalarDataArray());
  }

  /** Name of each segment, by its value. */
  get segments() {
    const found = Object.values(this.services.segmentationService.getSegmentation(ID)?.segments ?? {}).filter(Boolean);
    return new Map(found.map(segment => [segment.segmentIndex, segment.label]));
  }

  /** Make the labelmap as MONAI Label's panel makes it, unless it is there. `labels`: the names that its segments begin with. */
  async prepare(labels) {
    if (this.labelmap) return;
    const segments = {};
    [...new Set(labels)].sort().forEach((label, index) => {
      segments[index + 1] = { segmentIndex: index + 1, label, active: index === 0, locked: false };
    });
    const representation = { type: "Labelmap" };
    const segmentations = [{ segmentationId: ID, representation, config: { label: "Segmentations", segments } }];
    await this.commands.runCommand("loadSegmentationsForViewport", { segmentations });
    for (const began = performance.now(); !this.labelmap; ) {
      if (performance.now() - began > PATIENCE_MS) throw new Error("OHIF did not make a labelmap for this series.");
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  }

  /** Make a mask the content of segments: `targets` have a `name` and the `value` that it has in the mask. */
  draw({ grid, data }, targets) {
    this.checkOwner();
    if (!alike(this.grid, grid)) throw new Error("OHIF shows this series on another grid than the server: the mask is not drawn.");
    const { segmentationService } = this.services;
    const voxels = this.voxels;
    const index = new Map();
    for (const { name, value } of targets) {
      let segment = [...this.segments].find(([, label]) => label === name)?.[0];
      if (segment === undefined) {
        segment = 1;
        while (this.segments.has(segment)) segment++;
        if (segment > 255) throw new Error("A labelmap holds 255 segments: delete some first.");
        segmentationService.addSegment(ID, { segmentIndex: segment, label: name });
      }
      index.set(value, segment);
    }
    const replaced = new Set(index.values());
    for (let at = 0; at < voxels.length; at++) {
      const segment = index.get(data[at]);
      if (segment !== undefined) voxels[at] = segment;
      else if (replaced.has(voxels[at])) voxels[at] = 0;
    }
    this.labelmap.voxelManager.setCompleteScalarDataArray(voxels);
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(ID);
    const first = index.get(targets[0].value);
    segmentationService.setActiveSegment(ID, first);
    if (voxels.includes(first)) segmentationService.jumpToSegmentCenter(ID, first);
  }

  /** What is drawn, with the values 1..N and their names as the stock route's `label_info`. */
  label() {
    if (!this.labelmap) throw new Error("Nothing is drawn on this series yet.");
    this.checkOwner();
    const voxels = this.voxels;
    const present = new Uint8Array(256);
    for (const value of voxels) present[value] = 1;
    const values = [...present.keys()].filter(value => value && present[value]);
    const segments = this.segments;
    const names = values.map((value, at) => ({ name: segments.get(value) ?? `segment ${value}`, idx: at + 1 }));
    const order = new Uint8Array(256);
    values.forEach((value, at) => { order[value] = at + 1; });
    return { grid: this.grid, data: voxels.map(value => order[value]), names };
  }
}
