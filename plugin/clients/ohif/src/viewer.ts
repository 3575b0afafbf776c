/** What the panel and the overlay need of the viewer, in terms of studies, slices and millimetres. */
import { apply, boxAround, centre, dot, IDENTITY, invert, minus, multiply, type Box, type Mat4, type Vec3 } from './geometry';
import { cancelDrawing, jumpToSlice, metaData, NO_IMAGES, setStyle, type DisplaySet, type Manager, type Measurement, type Services, type Viewport } from './ohif';
import { MARKS, type Kind } from './review';
import type { Geometry, Region } from './client';

export interface Shown {
  study: string; // StudyInstanceUID
  series: string;
  image: string; // SOPInstanceUID of the slice on screen, else empty
  modality: string;
  description: string;
}

/** Where the images of an answer are: their place, and the frame of reference they share. */
export interface Place {
  series: string;
  frame: string;
  geometry: Geometry | null;
}

export type Tool = 'box' | 'stroke' | 'point';
export const NEXT_TOOL: Record<Tool, Tool> = { box: 'stroke', stroke: 'point', point: 'box' };
/** A region as it was drawn: a box, or the points that a pen ran through; frame: of reference, of the images it was drawn on. */
export type Shape = ({ box: Box } | { path: Vec3[] }) & { frame: string };

/** What a session needs of it. */
export type Screen = Pick<Viewer, 'shown' | 'frameOfReference' | 'onChange' | 'jump' | 'draw' | 'stopDrawing' | 'label' | 'erase' | 'onDrawn'>;

const TOOLS: Record<Tool, string> = { box: 'RectangleROI', stroke: 'PlanarFreehandROI', point: 'Probe' };
const MOST_POINTS = 400; // of a stroke: a token is millimetres wide

export class Viewer {
  private readonly services: Services;
  private finishing = false; // a region: who hears of it must not give it up

  constructor(private readonly manager: Manager) {
    this.services = manager.servicesManager.services;
  }

  /** The images in the active viewport; null before there are any, and while a report or a segmentation is on screen. */
  shown(): Shown | null {
    const { activeViewportId } = this.services.viewportGridService.getState();
    const set = this.displaySet(activeViewportId);
    if (!set || NO_IMAGES.has(set.Modality)) return null;
    return {
      study: set.StudyInstanceUID,
      series: set.SeriesInstanceUID,
      image: this.sopOf(this.viewport(activeViewportId)),
      modality: set.Modality,
      description: set.SeriesDescription ?? '',
    };
  }

  frameOfReference(): string {
    const { activeViewportId } = this.services.viewportGridService.getState();
    return this.viewport(activeViewportId)?.getFrameOfReferenceUID?.() ?? '';
  }

  viewport(id: string): Viewport | null {
    return this.services.cornerstoneViewportService.getCornerstoneViewport(id) ?? null;
  }

  viewports(): [string, Viewport][] {
    return [...this.services.viewportGridService.getState().viewports.keys()].flatMap(id => {
      const viewport = this.viewport(id);
      return viewport?.element ? [[id, viewport] as [string, Viewport]] : [];
    });
  }

  /** Call back when another series, viewport or layout is on screen; returns how to stop it. */
  onChange(callback: () => void): () => void {
    const { viewportGridService: grid, cornerstoneViewportService: viewports } = this.services;
    const wanted = [
      [grid, 'ACTIVE_VIEWPORT_ID_CHANGED'],
      [grid, 'GRID_STATE_CHANGED'],
      [grid, 'VIEWPORTS_READY'],
      [viewports, 'VIEWPORT_DATA_CHANGED'],
    ] as const;
    const subscriptions = wanted.flatMap(([service, name]) => {
      const event = service.EVENTS[name];
      return event ? [service.subscribe(event, callback)] : [];
    });
    return () => subscriptions.forEach(subscription => subscription.unsubscribe());
  }

  /**
   * The server's millimetres to those of a viewport; null where it shows other images. Of a single picture, which need
   * not say where it lies, the two are matched by pixel.
   */
  toViewport(place: Place, id: string, viewport: Viewport): Mat4 | null {
    const sameSeries = this.displaySet(id)?.SeriesInstanceUID === place.series;
    const sameFrame = !!place.frame && viewport.getFrameOfReferenceUID?.() === place.frame;
    const { geometry } = place;
    if (!geometry || geometry.shape[0] > 1) {
      return sameSeries || sameFrame ? IDENTITY : null;
    }
    const data = viewport.getImageData?.()?.imageData;
    if (!sameSeries || !data) return null;
    return multiply(affineOf(ijk => data.indexToWorld(ijk) as Vec3), invert(geometry.ijk_to_lps));
  }

  /** Show the slice of a region in every viewport that has it. */
  jump(region: Region, place: Place): void {
    for (const [id, viewport] of this.viewports()) {
      const moved = this.toViewport(place, id, viewport);
      if (!moved) continue;
      const index = viewport.type === 'stack' && region.sop_uid ? this.indexOf(viewport, region.sop_uid) : -1;
      if (index >= 0) {
        jumpToSlice(this.manager, viewport.element, index);
      } else if (viewport.type !== 'stack') {
        const target = apply(moved, centre(region.box_mm as Box));
        const { focalPoint, position, viewPlaneNormal } = viewport.getCamera();
        const along = dot(minus(target, focalPoint), viewPlaneNormal);
        const shift = (p: Vec3) => p.map((x, i) => x + along * viewPlaneNormal[i]!) as Vec3;
        viewport.setCamera({ focalPoint: shift(focalPoint), position: shift(position) });
        viewport.render();
      }
    }
  }

  /** The next region that is drawn belongs to us. */
  draw(tool: Tool): void {
    this.giveUp();
    this.manager.commandsManager.runCommand('setToolActiveToolbar', { toolName: TOOLS[tool] });
  }

  /** The mouse sets the window again; what was begun goes. */
  stopDrawing(): void {
    this.giveUp();
    this.manager.commandsManager.runCommand('setToolActiveToolbar', { toolName: 'WindowLevel' });
  }

  /** Name what was drawn, in the colour of its kind, without statistics that would hide the evidence. */
  label(id: string, kind: Kind): void {
    setStyle(this.manager, id, { color: MARKS[kind], textBoxVisibility: false });
    const measurement = this.services.measurementService.getMeasurement(id);
    if (measurement) this.services.measurementService.update(id, { ...measurement, label: kind }, true);
  }

  erase(id: string): void {
    this.services.measurementService.remove(id);
  }

  /** Regions that are drawn, moved and erased, in the server's millimetres; returns how to stop it. */
  onDrawn(
    place: () => Place | null,
    heard: { added(id: string, shape: Shape): void; moved(id: string, shape: Shape): void; removed(id: string): void },
  ): () => void {
    const service = this.services.measurementService;
    const shaped = (then: (id: string, shape: Shape) => void) => (detail: { measurement: Measurement }) => {
      const shape = this.shapeOf(detail.measurement, place());
      if (shape) then(detail.measurement.uid, shape);
    };
    const added = (detail: { measurement: Measurement }) => {
      if (this.finishing) return;
      this.finishing = true;
      shaped(heard.added)(detail);
      this.finishing = false;
    };
    const subscriptions = [
      service.subscribe(service.EVENTS['MEASUREMENT_ADDED']!, added),
      service.subscribe(service.EVENTS['MEASUREMENT_UPDATED']!, shaped(heard.moved)),
      service.subscribe(service.EVENTS['MEASUREMENT_REMOVED']!, ({ measurement }) =>
        heard.removed(typeof measurement === 'string' ? measurement : measurement.uid),
      ),
    ];
    return () => subscriptions.forEach(subscription => subscription.unsubscribe());
  }

  /** What a click began follows the mouse until it is cancelled; the viewer takes it for finished then, and says so. */
  private giveUp(): void {
    if (this.finishing) return;
    this.finishing = true;
    const { measurementService: service } = this.services;
    const begun = new Set<string>();
    const heard = service.subscribe(service.EVENTS['MEASUREMENT_ADDED']!, ({ measurement }) => begun.add(measurement.uid));
    for (const [, viewport] of this.viewports()) {
      const id = cancelDrawing(this.manager, viewport.element);
      if (id) begun.add(id);
    }
    heard.unsubscribe();
    begun.forEach(id => this.erase(id));
    this.finishing = false;
  }

  private shapeOf(measurement: Measurement, place: Place | null): Shape | null {
    const { referenceSeriesUID, FrameOfReferenceUID: frame = '', points, toolName } = measurement;
    const elsewhere = referenceSeriesUID !== place?.series && (!place?.frame || frame !== place.frame);
    if (!place || !points?.length || elsewhere) return null; // drawn on other images: its millimetres are not ours
    for (const [id, viewport] of this.viewports()) {
      const moved = this.toViewport(place, id, viewport);
      if (!moved) continue;
      const back = invert(moved);
      const there = points.map(point => apply(back, [...point] as Vec3));
      return toolName === TOOLS.stroke || toolName === TOOLS.point ? { path: thinned(there), frame } : { box: boxAround(there), frame };
    }
    return null;
  }

  private displaySet(viewportId: string): DisplaySet | undefined {
    const uid = this.services.viewportGridService.getState().viewports.get(viewportId)?.displaySetInstanceUIDs?.[0];
    return uid ? this.services.displaySetService.getDisplaySetByUID(uid) : undefined;
  }

  private sopOf(viewport: Viewport | null): string {
    const imageId = viewport?.getCurrentImageId?.();
    return imageId ? this.sop(imageId) : '';
  }

  private indexOf(viewport: Viewport, sop: string): number {
    return (viewport.getImageIds?.() ?? []).findIndex(imageId => this.sop(imageId) === sop);
  }

  private sop(imageId: string): string {
    return metaData(this.manager).get('instance', imageId)?.SOPInstanceUID ?? '';
  }
}

/** At most MOST_POINTS of them, evenly, both ends among them. */
export function thinned(points: Vec3[]): Vec3[] {
  if (points.length <= MOST_POINTS) return points;
  return Array.from({ length: MOST_POINTS }, (_, n) => points[Math.round((n * (points.length - 1)) / (MOST_POINTS - 1))]!);
}

/** The affine that a function of indices is. */
function affineOf(at: (ijk: Vec3) => Vec3): Mat4 {
  const origin = at([0, 0, 0]);
  const columns = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]] as Vec3[]).map(step => minus(at(step), origin));
  return [...[0, 1, 2].map(i => [...columns.map(column => column[i]!), origin[i]!]), [0, 0, 0, 1]];
}
