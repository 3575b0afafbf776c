/** The OHIF mode: OHIF's own viewports and tools for CT, MR, CR, DX, US and others, with our panel at the right. */
import { NO_IMAGES, tools, type Manager } from './ohif';

const ID = 'sparsight-ohif-mode';

const DEFAULT = '@ohif/extension-default';
const CORNERSTONE = '@ohif/extension-cornerstone';
const SR = '@ohif/extension-cornerstone-dicom-sr';
const SEG = '@ohif/extension-cornerstone-dicom-seg';

const stack = `${DEFAULT}.sopClassHandlerModule.stack`;
const reports = `${SR}.sopClassHandlerModule.dicom-sr`;
const reports3D = `${SR}.sopClassHandlerModule.dicom-sr-3d`;
const segmentations = `${SEG}.sopClassHandlerModule.dicom-seg`;

// not our own extension: it is loaded by its address (app-config.js), which is not its name
const extensionDependencies = { [DEFAULT]: '^3.0.0', [CORNERSTONE]: '^3.0.0', [SR]: '^3.0.0', [SEG]: '^3.0.0' };

function toolGroups({ extensionManager, servicesManager }: Manager): void {
  const { toolNames, Enums } = tools({ extensionManager, servicesManager } as Manager);
  const { Primary, Secondary, Auxiliary, Wheel } = Enums.MouseBindings;
  const tool = (name: string, mouseButton?: number) => ({
    toolName: toolNames[name],
    ...(mouseButton === undefined ? {} : { bindings: [{ mouseButton }] }),
  });
  const active = [tool('WindowLevel', Primary), tool('Pan', Auxiliary), tool('Zoom', Secondary), tool('StackScroll', Wheel)];
  const passive = ['Length', 'Bidirectional', 'RectangleROI', 'EllipticalROI', 'CircleROI', 'Angle', 'Probe', 'Magnify', 'ArrowAnnotate'];
  // strokes are marks, not measurements; this tool hides its text by no style of a single one
  const silent = { ...tool('PlanarFreehandROI'), configuration: { getTextLines: () => [] } };
  const drawn = { active, passive: [...passive.map(name => tool(name)), silent] };
  const { toolGroupService } = servicesManager.services;
  toolGroupService.createToolGroupAndAddTools('default', { ...drawn, enabled: [tool('ImageOverlayViewer'), tool('ReferenceLines')] });
  toolGroupService.createToolGroupAndAddTools('mpr', {
    ...drawn,
    disabled: [{ toolName: toolNames['Crosshairs'], configuration: { autoPan: { enabled: false } } }],
  });
  // a report's regions are drawn by a tool of OHIF's own
  const reportTools = extensionManager.getModuleEntry(`${SR}.utilityModule.tools`)?.exports.toolNames;
  toolGroupService.createToolGroupAndAddTools('SRToolGroup', { active, enabled: reportTools ? [{ toolName: reportTools.DICOMSRDisplay }] : [] });
  toolGroupService.createToolGroupAndAddTools('volume3d', {
    active: [tool('TrackballRotateTool', Primary), tool('Zoom', Secondary), tool('Pan', Auxiliary)],
  });
}

function buttons({ extensionManager }: Manager): unknown[] {
  const kinds = extensionManager.modules['toolbarModule']?.flatMap(({ module }) => module.map(one => one.name));
  const kind = kinds?.includes('ohif.toolButton') ? 'ohif.toolButton' : 'ohif.radioGroup'; // as it was called up to 3.10
  const use = { commandName: 'setToolActiveToolbar', commandOptions: { toolGroupIds: ['default', 'mpr', 'SRToolGroup'] } };
  const button = (id: string, icon: string, label: string, more: object = {}) => ({
    id,
    uiType: kind,
    props: { icon, label, commands: use, evaluate: 'evaluate.cornerstoneTool', ...more },
  });
  return [
    button('WindowLevel', 'tool-window-level', 'Window'),
    button('Zoom', 'tool-zoom', 'Zoom'),
    button('Pan', 'tool-move', 'Pan'),
    button('Length', 'tool-length', 'Length'),
    button('RectangleROI', 'tool-rectangle', 'Rectangle'),
    button('Reset', 'tool-reset', 'Reset view', { commands: 'resetViewport', evaluate: 'evaluate.action' }),
    {
      id: 'Layout',
      uiType: 'ohif.layoutSelector',
      props: { rows: 3, columns: 4, evaluate: 'evaluate.action', commands: 'setViewportGridLayout' },
    },
    button('Crosshairs', 'tool-crosshair', 'Crosshairs', {
      commands: { commandName: 'setToolActiveToolbar', commandOptions: { toolGroupIds: ['mpr'] } },
    }),
  ];
}

const hotkeys = (
  [
    ['scaleUpViewport', 'Zoom in', '+'],
    ['scaleDownViewport', 'Zoom out', '-'],
    ['fitViewportToWindow', 'Fit', '='],
    ['rotateViewportCW', 'Rotate right', 'r'],
    ['rotateViewportCCW', 'Rotate left', 'l'],
    ['flipViewportHorizontal', 'Flip', 'h'],
    ['flipViewportVertical', 'Flip upside down', 'v'],
    ['invertViewport', 'Invert', 'i'],
    ['resetViewport', 'Reset', 'space'],
    ['nextImage', 'Next slice', 'down'],
    ['previousImage', 'Slice before', 'up'],
    ['incrementActiveViewport', 'Next viewport', 'right'],
    ['decrementActiveViewport', 'Viewport before', 'left'],
  ] as const
).map(([commandName, label, key]) => ({ commandName, label, keys: [key], isEditable: true }));

export default {
  id: ID,
  extensionDependencies,
  modeFactory() {
    return {
      id: ID,
      routeName: 'sparsight',
      displayName: 'Ask (sparsight)',
      onModeEnter(manager: Manager): void {
        const { measurementService, toolbarService } = manager.servicesManager.services;
        (measurementService as any).clearMeasurements();
        toolGroups(manager);
        const all = buttons(manager);
        toolbarService.addButtons(all);
        toolbarService.createButtonSection('primary', all.map(each => (each as { id: string }).id));
      },
      onModeExit({ servicesManager }: Manager): void {
        const services = servicesManager.services;
        services['uiDialogService']?.dismissAll?.();
        services['uiModalService']?.hide?.();
        for (const name of ['toolGroupService', 'syncGroupService', 'segmentationService', 'cornerstoneViewportService']) {
          services[name]?.destroy?.();
        }
      },
      validationTags: { study: [], series: [] },
      isValidMode: ({ modalities }: { modalities: string }) => ({
        valid: modalities.split('\\').some(modality => !NO_IMAGES.has(modality)),
        description: 'Needs images.',
      }),
      routes: [
        {
          path: 'sparsight',
          layoutTemplate: () => ({
            id: `${DEFAULT}.layoutTemplateModule.viewerLayout`,
            props: {
              leftPanels: [`${DEFAULT}.panelModule.seriesList`],
              leftPanelClosed: false,
              rightPanels: ['sparsight-ohif.panelModule.ask'],
              rightPanelClosed: false,
              viewports: [
                { namespace: `${CORNERSTONE}.viewportModule.cornerstone`, displaySetsToDisplay: [stack] },
                { namespace: `${SR}.viewportModule.dicom-sr`, displaySetsToDisplay: [reports, reports3D] },
                { namespace: `${SEG}.viewportModule.dicom-seg`, displaySetsToDisplay: [segmentations] },
              ],
            },
          }),
        },
      ],
      extensions: extensionDependencies,
      hangingProtocol: 'default',
      sopClassHandlers: [segmentations, stack, reports3D, reports],
      hotkeys,
    };
  },
};
