import { afterEach, describe, expect, it } from 'vitest';
import { Overlay, type Drawing } from '../src/overlay';
import type { Viewer } from '../src/viewer';

const DRAWING: Drawing = {
  place: { series: '1.2', frame: '', geometry: null },
  regions: [],
  tokens: null,
  chosen: -1,
  marks: [],
};

describe('what is painted', () => {
  let paints = 0;
  const viewer = { viewports: () => (paints++, []), viewport: () => null } as unknown as Viewer;
  let overlay: Overlay;
  const painted = (work: () => void) => {
    paints = 0;
    work();
    return paints;
  };
  afterEach(() => overlay.dispose());

  it('is painted once, and again only where something of it is new', () => {
    overlay = new Overlay(viewer);
    expect(painted(() => overlay.show({ ...DRAWING }))).toBe(1);
    expect(painted(() => overlay.show({ ...DRAWING }))).toBe(0);
    for (const change of [{ chosen: 0 }, { marks: [] }, { regions: [] }, { place: { ...DRAWING.place } }])
      expect(painted(() => overlay.show({ ...DRAWING, ...change })), JSON.stringify(change)).toBe(1);
    expect(painted(() => overlay.show(null))).toBe(1);
    expect(painted(() => overlay.show(null))).toBe(0);
  });

  it('follows the toggle and the opacity', () => {
    overlay = new Overlay(viewer);
    overlay.show(DRAWING);
    overlay.visible = false;
    expect(painted(() => overlay.show(DRAWING))).toBe(1);
    overlay.opacity = 0.5;
    expect(painted(() => overlay.show(DRAWING))).toBe(1);
    expect(painted(() => overlay.show(DRAWING))).toBe(0);
  });
});
