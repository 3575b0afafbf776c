/** Planes, boxes and 4 x 4 matrices in LPS millimetres. Pure functions. */

export type Vec3 = [number, number, number];
export type Box = [Vec3, Vec3];
export type Mat4 = number[][]; // rows; the last is 0 0 0 1

export const IDENTITY: Mat4 = [
  [1, 0, 0, 0],
  [0, 1, 0, 0],
  [0, 0, 1, 0],
  [0, 0, 0, 1],
];

export function apply(m: Mat4, [x, y, z]: Vec3): Vec3 {
  const row = (r: number[]) => r[0]! * x + r[1]! * y + r[2]! * z + r[3]!;
  return [row(m[0]!), row(m[1]!), row(m[2]!)];
}

export function multiply(a: Mat4, b: Mat4): Mat4 {
  return a.map(row => [0, 1, 2, 3].map(c => row.reduce((sum, value, k) => sum + value * b[k]![c]!, 0)));
}

/** Inverse of an affine. Throws RangeError for one that is flat. */
export function invert(m: Mat4): Mat4 {
  const [a, b, c] = [m[0]!, m[1]!, m[2]!] as [number[], number[], number[]];
  const cofactor = (i: number, j: number) => {
    const rows = [a, b, c].filter((_, r) => r !== i);
    const [p, q] = rows.map(row => row.slice(0, 3).filter((_, k) => k !== j)) as [number[], number[]];
    return (p[0]! * q[1]! - p[1]! * q[0]!) * ((i + j) % 2 ? -1 : 1);
  };
  const determinant = [0, 1, 2].reduce((sum, j) => sum + a[j]! * cofactor(0, j), 0);
  if (!Number.isFinite(1 / determinant)) throw new RangeError('a flat affine has no inverse');
  const inverse = [0, 1, 2].map(i => [0, 1, 2].map(j => cofactor(j, i) / determinant));
  const moved = inverse.map(row => -row.reduce((sum, value, k) => sum + value * [a, b, c][k]![3]!, 0));
  return [...inverse.map((row, i) => [...row, moved[i]!]), [0, 0, 0, 1]];
}

export const dot = (a: Vec3, b: Vec3): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const minus = (a: Vec3, b: Vec3): Vec3 => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
export const centre = ([low, high]: Box): Vec3 => low.map((x, i) => (x + high[i]!) / 2) as Vec3;

/** The eight corners of a box, bit 0 along x, 1 along y, 2 along z. */
export function corners([low, high]: Box): Vec3[] {
  return Array.from({ length: 8 }, (_, n) => [0, 1, 2].map(i => ((n >> i) & 1 ? high : low)[i]!) as Vec3);
}

/**
 * Where a plane cuts a body of eight corners (`corners`, moved by any affine): its outline, at most six points in order;
 * none where the plane passes it by.
 */
export function cut(body: Vec3[], point: Vec3, normal: Vec3): Vec3[] {
  const side = body.map(corner => dot(minus(corner, point), normal));
  const found: Vec3[] = [];
  for (let n = 0; n < 8; n++) {
    for (let axis = 0; axis < 3; axis++) {
      const other = n | (1 << axis);
      if (other === n) continue;
      const [s, t] = [side[n]!, side[other]!];
      if (s * t > 0 || s === t) continue;
      const share = s / (s - t);
      found.push(body[n]!.map((x, i) => x + share * (body[other]![i]! - x)) as Vec3);
    }
  }
  return found.length < 3 ? [] : around(found, normal);
}

/** Points of one plane in the order in which they go round their middle. */
function around(points: Vec3[], normal: Vec3): Vec3[] {
  const middle = [0, 1, 2].map(i => points.reduce((sum, p) => sum + p[i]!, 0) / points.length) as Vec3;
  const from = points.reduce((far, p) => (dot(minus(p, middle), minus(p, middle)) > dot(far, far) ? minus(p, middle) : far), [0, 0, 0] as Vec3);
  const up: Vec3 = [
    normal[1] * from[2] - normal[2] * from[1],
    normal[2] * from[0] - normal[0] * from[2],
    normal[0] * from[1] - normal[1] * from[0],
  ];
  const angle = (p: Vec3) => Math.atan2(dot(minus(p, middle), up), dot(minus(p, middle), from));
  return points.map(p => [angle(p), p] as const).sort((a, b) => a[0] - b[0]).map(([, p]) => p);
}

/** The upright box around points. */
export function boxAround(points: Vec3[]): Box {
  const along = (pick: (...values: number[]) => number) => [0, 1, 2].map(i => pick(...points.map(p => p[i]!))) as Vec3;
  return [along(Math.min), along(Math.max)];
}

/** Do all points lie beside the rows or columns of an image of shape slices, rows, columns? A pixel's centre is a whole number. */
export function beside(points: Vec3[], { shape, ijk_to_lps }: { shape: number[]; ijk_to_lps: Mat4 }): boolean {
  const back = invert(ijk_to_lps);
  const [low, high] = boxAround(points.map(point => apply(back, point)));
  return [shape[2]!, shape[1]!].some((n, i) => high[i]! < -0.5 || low[i]! > n - 0.5);
}
