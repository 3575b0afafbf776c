/** The parts of OHIF 3.10 to 3.14 that we use, as types. */
import type { Vec3 } from './geometry';

export interface Subscription {
  unsubscribe(): void;
}

interface PubSub {
  EVENTS: Record<string, string>;
  subscribe(event: string, callback: (detail: any) => void): Subscription;
}

export interface Viewport {
  type: string;
  element: HTMLDivElement;
  worldToCanvas(point: Vec3): [number, number];
  getCamera(): { focalPoint: Vec3; position: Vec3; viewPlaneNormal: Vec3 };
  setCamera(camera: { focalPoint: Vec3; position: Vec3 }): void;
  getFrameOfReferenceUID?(): string | undefined;
  getCurrentImageId?(): string | undefined;
  getImageIds?(): string[];
  getImageData?(): { imageData?: { indexToWorld(ijk: number[]): number[] } } | undefined;
  render(): void;
}

export interface DisplaySet {
  displaySetInstanceUID: string;
  StudyInstanceUID: string;
  SeriesInstanceUID: string;
  Modality: string;
  SeriesDescription?: string;
  instances?: { SOPInstanceUID: string }[];
  images?: { SOPInstanceUID: string }[];
}

export interface Measurement {
  uid: string;
  toolName?: string;
  points?: Vec3[];
  label?: string;
  FrameOfReferenceUID?: string;
  referenceSeriesUID?: string;
}

export interface Services {
  viewportGridService: PubSub & {
    getState(): { activeViewportId: string; viewports: Map<string, { displaySetInstanceUIDs: string[] }> };
  };
  cornerstoneViewportService: PubSub & { getCornerstoneViewport(id: string): Viewport | null };
  displaySetService: PubSub & { getDisplaySetByUID(uid: string): DisplaySet | undefined };
  measurementService: PubSub & {
    getMeasurement(uid: string): Measurement | undefined;
    update(uid: string, measurement: Measurement, notYetUpdatedAtSource?: boolean): void;
    remove(uid: string): void;
  };
  toolGroupService: { createToolGroupAndAddTools(id: string, tools: unknown): void; destroy(): void; [more: string]: any };
  toolbarService: { addButtons(buttons: unknown[]): void; createButtonSection(section: string, ids: string[]): void; [more: string]: any };
  userAuthenticationService?: { getAuthorizationHeader?(): { Authorization?: string } | undefined };
  [service: string]: any;
}

export interface Manager {
  servicesManager: { services: Services };
  commandsManager: { runCommand(name: string, options?: Record<string, unknown>, context?: string): unknown };
  extensionManager: { getModuleEntry(id: string): any; modules: Record<string, { module: { name: string }[] }[]> };
}

/** Modalities whose objects are none that one can ask about. */
export const NO_IMAGES = new Set(['SR', 'SEG', 'RTSTRUCT', 'RTPLAN', 'RTDOSE', 'PR', 'KO', 'ECG', 'DOC', 'SM', 'AU', 'REG']);

const CORNERSTONE = '@ohif/extension-cornerstone';

/** Cornerstone as the viewer has it: nothing of it is in our bundle. */
function libraries(manager: Manager): { cornerstone: any; cornerstoneTools: any } {
  return manager.extensionManager.getModuleEntry(`${CORNERSTONE}.utilityModule.common`).exports.getCornerstoneLibraries();
}

export function metaData(manager: Manager): { get(type: string, imageId: string): any } {
  return libraries(manager).cornerstone.metaData;
}

/** To a slice of a stack, as the viewer's own slider goes there: so the number, the slider and the wheel follow. */
export function jumpToSlice(manager: Manager, element: HTMLElement, imageIndex: number): void {
  void libraries(manager).cornerstone.utilities.jumpToSlice(element, { imageIndex, debounceLoading: true });
}

/** Give up what is being drawn on an element; its id, where something was. */
export function cancelDrawing(manager: Manager, element: HTMLElement): string | undefined {
  return libraries(manager).cornerstoneTools.cancelActiveManipulations(element);
}

/** How a region is drawn, by its id: its colour, and whether the viewer writes its statistics beside it. */
export function setStyle(manager: Manager, id: string, style: { color: string; textBoxVisibility: boolean }): void {
  const { color } = style;
  libraries(manager).cornerstoneTools.annotation.config.style.setAnnotationStyles(id, { ...style, colorHighlighted: color, colorSelected: color });
}

export function tools(manager: Manager): { toolNames: Record<string, string>; Enums: any } {
  return manager.extensionManager.getModuleEntry(`${CORNERSTONE}.utilityModule.tools`).exports;
}
