import { expect, test, vi } from 'vitest';
import mode from '../src/mode';

/** The buttons that the mode makes in an OHIF whose toolbar knows these kinds. */
function buttons(...kinds: string[]): { id: string; uiType: string }[] {
  const names = new Proxy({}, { get: (_, name) => name });
  const exports = { toolNames: names, Enums: { MouseBindings: {} } };
  const toolbarService = { addButtons: vi.fn(), createButtonSection: vi.fn() };
  const services = { measurementService: { clearMeasurements: vi.fn() }, toolbarService, toolGroupService: { createToolGroupAndAddTools: vi.fn() } };
  const modules = { toolbarModule: [{ module: [{ name: 'evaluate.action' }] }, { module: kinds.map(name => ({ name })) }] };
  mode.modeFactory().onModeEnter({ extensionManager: { getModuleEntry: () => ({ exports }), modules }, servicesManager: { services } } as any);
  return toolbarService.addButtons.mock.calls[0]![0];
}

test('buttons are of the kind that this OHIF has', () => {
  const kinds = (made: { uiType: string }[]) => [...new Set(made.map(one => one.uiType))].sort();
  expect(kinds(buttons('ohif.radioGroup', 'ohif.layoutSelector'))).toEqual(['ohif.layoutSelector', 'ohif.radioGroup']); // 3.10
  expect(kinds(buttons('ohif.toolButton', 'ohif.layoutSelector'))).toEqual(['ohif.layoutSelector', 'ohif.toolButton']); // 3.12
});

test('a study is asked about where one of its series has images, of whatever modality', () => {
  const valid = (modalities: string) => mode.modeFactory().isValidMode({ modalities }).valid;
  for (const modality of ['CT', 'MR', 'CR', 'DX', 'US', 'SR\\CT']) expect(valid(modality), modality).toBe(true);
  for (const modality of ['SR', 'SEG\\SR', 'DOC']) expect(valid(modality), modality).toBe(false);
});
