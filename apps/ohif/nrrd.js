/** Masks as NRRD files: uint8, three axes, gzip, in LPS millimetres. */

/** A grid: `size` in voxels, i first; `directions`, for each axis the step from voxel to voxel; `origin`, the first voxel. */

async function through(stream, bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

const vectors = text => [...text.matchAll(/\(([^)]*)\)/g)].map(found => found[1].split(",").map(Number));

/** The grid and the voxels of a file. Throws an Error that says what is wrong with it. */
export async function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  let end = 0;
  while (end < bytes.length - 1 && !(bytes[end] === 10 && bytes[end + 1] === 10)) end++;
  const lines = new TextDecoder().decode(bytes.subarray(0, end)).split("\n");
  const fields = new Map(lines.slice(1).map(line => line.split(/:=?\s*/, 2)));
  const of = name => fields.get(name) ?? "";
  if (!lines[0].startsWith("NRRD") || !/^(unsigned char|uchar|uint8)/.test(of("type"))) {
    throw new Error("The server's answer is not a mask file.");
  }
  const size = of("sizes").trim().split(/\s+/).map(Number);
  const packed = bytes.subarray(end + 2);
  const data = of("encoding") === "raw" ? packed : await through(new DecompressionStream("gzip"), packed);
  if (data.length !== size.reduce((a, b) => a * b)) throw new Error("The mask file of the server is cut short.");
  return { grid: { size, directions: vectors(of("space directions")), origin: vectors(of("space origin"))[0] }, data };
}

/** A file with these voxels. */
export async function encode(grid, data) {
  const vector = numbers => `(${numbers.join(",")})`;
  const header = [
    "NRRD0004",
    "type: uint8",
    "dimension: 3",
    "space: left-posterior-superior",
    `sizes: ${grid.size.join(" ")}`,
    `space directions: ${grid.directions.map(vector).join(" ")}`,
    "kinds: domain domain domain",
    `space origin: ${vector(grid.origin)}`,
    "encoding: gzip",
    "\n",
  ].join("\n");
  return new Blob([header, await through(new CompressionStream("gzip"), data)]);
}

/** Whether two grids have the same voxels, to within a tenth of one. */
export function alike(a, b) {
  const voxel = Math.min(...a.directions.map(step => Math.hypot(...step)));
  const near = (u, v, share) => u.every((value, index) => Math.abs(value - v[index]) <= share * voxel);
  return (
    a.size.every((count, axis) => count === b.size[axis]) &&
    near(a.origin, b.origin, 0.1) &&
    a.directions.every((step, axis) => near(step, b.directions[axis], 0.1 / a.size[axis]))
  );
}
