import { expect, test } from 'vitest';
import { apply, boxAround, corners, cut, dot, IDENTITY, invert, minus, multiply, type Box, type Mat4, type Vec3 } from '../src/geometry';

const TILTED: Mat4 = [[1.2, -0.9, 0.1, 10], [0.7, 1.6, -0.4, -20], [0.2, 0.3, 2.9, 5], [0, 0, 0, 1]];
const BOX: Box = [[-1, -2, -3], [1, 2, 3]];

test('an affine and its inverse cancel out', () => {
  const product = multiply(TILTED, invert(TILTED));
  product.forEach((row, i) => row.forEach((value, j) => expect(value).toBeCloseTo(IDENTITY[i]![j]!, 10)));
  const point: Vec3 = [3, -4, 5];
  apply(invert(TILTED), apply(TILTED, point)).forEach((value, i) => expect(value).toBeCloseTo(point[i]!, 10));
  expect(() => invert([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])).toThrow(RangeError);
});

test('an axial plane cuts a box in its rectangle', () => {
  const outline = cut(corners(BOX), [0, 0, 1], [0, 0, 1]);
  expect(outline).toHaveLength(4);
  expect(boxAround(outline)).toEqual([[-1, -2, 1], [1, 2, 1]]);
  expect(area(outline, [0, 0, 1])).toBeCloseTo(8);
});

test('planes beside a box cut nothing', () => {
  expect(cut(corners(BOX), [0, 0, 3.01], [0, 0, 1])).toEqual([]);
  expect(cut(corners(BOX), [-1.01, 0, 0], [1, 0, 0])).toEqual([]);
});

test('an oblique plane cuts a cube in a hexagon of the known area', () => {
  const normal = [1, 1, 1].map(x => x / Math.sqrt(3)) as Vec3;
  const outline = cut(corners([[0, 0, 0], [1, 1, 1]]), [0.5, 0.5, 0.5], normal);
  expect(outline).toHaveLength(6);
  outline.forEach(point => expect(dot(minus(point, [0.5, 0.5, 0.5]), normal)).toBeCloseTo(0));
  expect(area(outline, normal)).toBeCloseTo((3 * Math.sqrt(3)) / 4);
});

/** Of a polygon whose points go round. */
function area(points: Vec3[], normal: Vec3): number {
  const sum: Vec3 = [0, 0, 0];
  points.forEach((p, n) => {
    const q = points[(n + 1) % points.length]!;
    sum[0] += p[1] * q[2] - p[2] * q[1];
    sum[1] += p[2] * q[0] - p[0] * q[2];
    sum[2] += p[0] * q[1] - p[1] * q[0];
  });
  return Math.abs(dot(sum, normal)) / 2;
}
