/** Evidence drawn over every viewport that shows its images, on whatever plane: tokens as heat, regions as boxes. */
import { apply, corners, cut, dot, minus, multiply, type Box, type Mat4, type Vec3 } from './geometry';
import type { Region, Tokens } from './client';
import type { Viewport } from './ohif';
import { MARKS, type Drawn } from './review';
import type { Place, Viewer } from './viewer';

const RENDERED = 'CORNERSTONE_IMAGE_RENDERED';
const HEAT = '255, 176, 32'; // amber: stands out from grey, for readers with any colour vision
const BOX = '#7df9ff';
const FLAT_MM = 1; // a box that is thinner lies in the plane it was drawn on
const STRONGEST = 0.55; // opacity of the heaviest token: the tissue below stays readable
const NAME = 'sparsight-evidence';

export interface Drawing {
  place: Place;
  regions: Region[];
  tokens: Tokens | null;
  chosen: number; // region that is looked at, -1: none
  marks: readonly Drawn[]; // of the review
}

/** What a session needs of it. */
export type Picture = Pick<Overlay, 'visible' | 'opacity' | 'show'>;

export class Overlay {
  visible = true;
  opacity = 1;
  private drawing: Drawing | null = null;
  private painted: unknown[] = [];
  private heat: { body: Vec3[]; weight: number }[] = [];
  private readonly heard = (event: Event) => {
    const id = (event as CustomEvent<{ viewportId?: string }>).detail?.viewportId;
    const viewport = id ? this.viewer.viewport(id) : null;
    if (id && viewport) this.paint(id, viewport);
  };

  constructor(private readonly viewer: Viewer) {
    document.addEventListener(RENDERED, this.heard, true); // it does not bubble
  }

  /** Painted anew only where something of it is new: where there is no GPU each painting costs frames. */
  show(drawing: Drawing | null): void {
    const now = [drawing?.place, drawing?.regions, drawing?.tokens, drawing?.chosen, drawing?.marks, this.visible, this.opacity];
    if (this.painted.length && now.every((part, n) => part === this.painted[n])) return;
    this.painted = now;
    if (drawing?.tokens !== this.drawing?.tokens) this.heat = drawing?.tokens ? bodies(drawing.tokens) : [];
    this.drawing = drawing;
    this.repaint();
  }

  repaint(): void {
    for (const [id, viewport] of this.viewer.viewports()) this.paint(id, viewport);
  }

  dispose(): void {
    document.removeEventListener(RENDERED, this.heard, true);
    document.querySelectorAll(`canvas.${NAME}`).forEach(canvas => canvas.remove());
  }

  private paint(id: string, viewport: Viewport): void {
    const canvas = canvasOver(viewport.element);
    const { clientWidth: width, clientHeight: height } = viewport.element;
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext('2d');
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    canvas.dataset['boxes'] = '[]';
    canvas.style.visibility = this.drawing && this.visible ? 'visible' : 'hidden'; // Chromium may go on showing what was cleared
    if (!this.drawing || !this.visible) return;
    const moved = this.viewer.toViewport(this.drawing.place, id, viewport);
    if (moved) this.paintOn(context, canvas, viewport, moved);
  }

  private paintOn(context: CanvasRenderingContext2D, canvas: HTMLCanvasElement, viewport: Viewport, moved: Mat4): void {
    const { focalPoint, viewPlaneNormal } = viewport.getCamera();
    const outline = (body: Vec3[]) =>
      cut(body.map(corner => apply(moved, corner)), focalPoint, viewPlaneNormal).map(point => viewport.worldToCanvas(point));
    const most = Math.max(...this.heat.map(token => token.weight), 0);
    for (const { body, weight } of this.heat) {
      const points = outline(body);
      if (!points.length) continue;
      context.fillStyle = `rgba(${HEAT}, ${STRONGEST * this.opacity * Math.sqrt(weight / most)})`;
      trace(context, points);
      context.fill();
    }
    const boxes: number[][] = [];
    this.drawing?.regions.forEach((region, n) => {
      const points = outline(corners(region.box_mm as Box));
      if (!points.length) return;
      context.globalAlpha = Math.max(0.35, this.opacity);
      context.strokeStyle = BOX;
      context.lineWidth = n === this.drawing?.chosen ? 3 : 1.5;
      trace(context, points);
      context.stroke();
      const [left, top] = [Math.min(...points.map(p => p[0])), Math.min(...points.map(p => p[1]))];
      caption(context, `${n + 1}`, left, top);
      context.globalAlpha = 1;
      boxes.push([n, left, top, Math.max(...points.map(p => p[0])), Math.max(...points.map(p => p[1]))]);
    });
    context.setLineDash([6, 4]);
    const near = (point: Vec3, reach: number) => Math.abs(dot(minus(point, focalPoint), viewPlaneNormal)) <= reach;
    for (const mark of this.drawing?.marks ?? []) {
      context.strokeStyle = MARKS[mark.kind];
      context.lineWidth = 2;
      if ('box' in mark) {
        const points = outline(corners(thick(mark.box)));
        if (!points.length) continue;
        trace(context, points);
      } else {
        const there = mark.path.map(point => apply(moved, point)).filter(point => near(point, Math.max(FLAT_MM / 2, mark.radius)));
        if (!there.length) continue;
        follow(context, there.map(point => viewport.worldToCanvas(point)));
      }
      context.stroke();
    }
    context.setLineDash([]);
    canvas.dataset['boxes'] = JSON.stringify(boxes); // for those who cannot see the canvas: tests, and whoever inspects it
  }
}

/** A mark is flat, as it was drawn: it is shown on the slices that its plane is nearest to. */
function thick([low, high]: Box): Box {
  const grown = (by: number) => (x: number, i: number) => (high[i]! - low[i]! < FLAT_MM ? x + by * FLAT_MM : x);
  return [low.map(grown(-0.5)) as Vec3, high.map(grown(0.5)) as Vec3];
}

/** A token's eight corners and its weight. */
function bodies({ tokens, uvw_to_lps }: Tokens): { body: Vec3[]; weight: number }[] {
  const cell = corners([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]);
  return tokens.map(([u, v, w, weight]) => {
    const there = multiply(uvw_to_lps, [[1, 0, 0, u], [0, 1, 0, v], [0, 0, 1, w], [0, 0, 0, 1]]);
    return { body: cell.map(corner => apply(there, corner)), weight };
  });
}

function trace(context: CanvasRenderingContext2D, points: [number, number][]): void {
  context.beginPath();
  points.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
}

/** Along a stroke; round a single point. */
function follow(context: CanvasRenderingContext2D, points: [number, number][]): void {
  context.beginPath();
  if (points.length === 1) context.arc(points[0]![0], points[0]![1], 5, 0, 2 * Math.PI);
  else points.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
}

function caption(context: CanvasRenderingContext2D, text: string, x: number, y: number): void {
  context.font = '600 12px system-ui, sans-serif';
  context.fillStyle = 'rgba(0, 0, 0, 0.65)';
  context.fillRect(x, y - 16, context.measureText(text).width + 8, 16);
  context.fillStyle = BOX;
  context.fillText(text, x + 4, y - 4);
}

function canvasOver(element: HTMLElement): HTMLCanvasElement {
  const there = element.querySelector<HTMLCanvasElement>(`:scope > canvas.${NAME}`);
  if (there) return there;
  const canvas = document.createElement('canvas');
  canvas.className = NAME;
  canvas.style.cssText = 'position:absolute;inset:0;width:100%;height:100%;pointer-events:none;z-index:2';
  canvas.setAttribute('aria-hidden', 'true');
  element.append(canvas);
  return canvas;
}
