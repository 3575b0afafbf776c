/** The OHIF extension: one panel, one overlay. Loaded at run time from app-config.js; OHIF is not rebuilt. */
import { Client, type Study } from './client';
import type { Manager } from './ohif';
import { Overlay } from './overlay';
import { Panel } from './panel';
import { Session } from './session';
import { Viewer } from './viewer';

const ID = 'sparsight-ohif';
const TAG = 'sparsight-panel';
const API = new URL('..', import.meta.url).pathname.replace(/\/$/, ''); // we are served as <API>/ohif/extension.mjs

let manager: Manager | null = null;
let running: { session: Session; overlay: Overlay } | null = null;

function begin(): void {
  if (running || !manager) return;
  const viewer = new Viewer(manager);
  const overlay = new Overlay(viewer);
  const authentication = manager.servicesManager.services.userAuthenticationService;
  const token = () => authentication?.getAuthorizationHeader?.()?.Authorization?.replace(/^Bearer /, '') ?? null;
  const session = new Session(new Client(API, token), viewer, overlay, localStorage, sessionStorage, open);
  running = { session, overlay };
  session.start();
}

function end(): void {
  running?.session.end();
  running?.overlay.dispose();
  running = null;
}

function open(study: Study): void {
  const target = new URL(window.location.href);
  target.search = new URLSearchParams({
    StudyInstanceUIDs: study.study_uid,
    initialSeriesInstanceUID: study.series_uid,
  }).toString();
  window.location.assign(target);
}

class Mounted extends Panel {
  override connectedCallback(): void {
    begin();
    this.session = running?.session;
    super.connectedCallback();
  }
}

/** An element as the host's React makes them: it lends us none, so its mark is read off one of its own. */
function element(tag: string, props: object): unknown {
  const own = manager?.extensionManager.getModuleEntry('@ohif/extension-default.panelModule.seriesList')?.component?.({});
  return { $$typeof: own?.$$typeof ?? Symbol.for('react.element'), type: tag, key: null, ref: null, props, _owner: null, _store: {} };
}

export default {
  id: ID,
  preRegistration(given: Manager): void {
    manager = given;
    if (!customElements.get(TAG)) customElements.define(TAG, Mounted);
  },
  onModeExit: end,
  getPanelModule() {
    return [
      {
        name: 'ask',
        iconName: 'tab-patient-info',
        iconLabel: 'Ask',
        label: 'Ask',
        component: () => element(TAG, {}),
      },
    ];
  },
};
