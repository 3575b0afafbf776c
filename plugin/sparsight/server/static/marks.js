// Regions that are drawn on a slice: boxes, strokes and points; as they are shown, said and sent.

export const COLOURS = { evidence: "#7df9ff", relevant: "#5fd38d", missed: "#ffb020", irrelevant: "#ff7a70" };
const KINDS = ["relevant", "missed", "irrelevant"];
const MOST_POINTS = 400;  // of a stroke: a token is millimetres wide

// What a drag on slice `slice` means with a tool; null where it is too small. points: [column, row], the first where it began.
export function drawn(tool, kind, slice, points, pen) {
  if (tool === "point") return { kind, slice, pen, path: points.slice(0, 1) };
  if (tool === "stroke") return points.length > 1 ? { kind, slice, pen, path: thinned(points) } : null;
  const last = points.at(-1);
  const ends = [0, 1].map((axis) => [points[0][axis], last[axis]].sort((a, b) => a - b));
  if (ends.some(([low, high]) => high - low < 1)) return null;
  return { kind, slice, from: ends.map((e) => e[0]), to: ends.map((e) => e[1]) };
}

const thinned = (points) => points.length <= MOST_POINTS ? points
  : Array.from({ length: MOST_POINTS }, (_, n) => points[Math.round((n * (points.length - 1)) / (MOST_POINTS - 1))]);

export function inWords(marks) {
  const counts = KINDS.map((kind) => [marks.filter((mark) => mark.kind === kind).length, kind]);
  const words = counts.filter(([n]) => n).map(([n, kind]) => `${n} ${kind}`).join(", ");
  return words ? `Marked: ${words}.` : "No regions marked.";
}

// Draw a mark on a canvas that shows a slice of `columns` by `rows` voxels of `dx` mm.
export function paint(canvas, { shape: [, rows, columns], spacing_mm: [dx] }, mark, colour = COLOURS[mark.kind], dashed = false) {
  const pen = canvas.getContext("2d"), sx = canvas.width / columns, sy = canvas.height / rows;
  const line = 2 * (window.devicePixelRatio || 1);
  pen.strokeStyle = colour;
  pen.lineWidth = line;
  pen.setLineDash(dashed ? [8, 6] : []);
  if (!mark.path) return pen.strokeRect(mark.from[0] * sx, mark.from[1] * sy, (mark.to[0] - mark.from[0]) * sx, (mark.to[1] - mark.from[1]) * sy);
  pen.beginPath();
  if (mark.path.length === 1) {
    pen.arc(mark.path[0][0] * sx, mark.path[0][1] * sy, Math.max(3 * line, (mark.pen / dx / 2) * sx), 0, 2 * Math.PI);
  } else {
    pen.lineWidth = Math.max(line, (mark.pen / dx) * sx);
    pen.lineCap = pen.lineJoin = "round";
    for (const [i, j] of mark.path) pen.lineTo(i * sx, j * sy);
  }
  pen.stroke();
}

// As the API takes it, in LPS mm. Voxel (i, j, k) reaches from i to i + 1 on the picture, its centre is index i.
export function toMillimetres(mark, { ijk_to_lps: m }) {
  const at = (i, j, k) => [0, 1, 2].map((axis) => m[axis][0] * i + m[axis][1] * j + m[axis][2] * k + m[axis][3]);
  if (mark.path) {
    return { kind: mark.kind, path_mm: mark.path.map(([i, j]) => at(i - 0.5, j - 0.5, mark.slice)), radius_mm: mark.pen / 2 };
  }
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const i of [mark.from[0], mark.to[0]]) for (const j of [mark.from[1], mark.to[1]]) for (const k of [mark.slice, mark.slice + 1]) {
    at(i - 0.5, j - 0.5, k - 0.5).forEach((mm, axis) => {
      low[axis] = Math.min(low[axis], mm);
      high[axis] = Math.max(high[axis], mm);
    });
  }
  return { kind: mark.kind, box_mm: [low, high] };
}
