import { css } from 'lit';

export const style = css`
  :host {
    --ink: #e8eef7; --quiet: #9fb0c8; --line: #24344f; --field: #0b1830; --accent: #5acce6; --on: #04121f; --warn: #ffb020; --bad: #ff8a80;
    display: block; height: 100%; overflow: auto; box-sizing: border-box; padding: 8px 10px 24px;
    color: var(--ink); font: 13px/1.45 system-ui, sans-serif; background: #090c29;
  }
  :host([light]) {
    --ink: #14213d; --quiet: #4a5a75; --line: #c8d3e3; --field: #fff; --accent: #006d8f; --on: #fff; --warn: #8a5a00; --bad: #b3261e;
    background: #f4f7fb;
  }
  * { box-sizing: border-box; }
  .banner { padding: 4px 8px; border: 1px solid var(--warn); border-radius: 4px; color: var(--warn); font-weight: 600; }
  section { border-top: 1px solid var(--line); margin-top: 10px; padding-top: 8px; }
  h2 { font-size: 12px; margin: 0 0 6px; color: var(--quiet); font-weight: 600; }
  * + h2 { margin-top: 10px; }
  textarea, input:not([type='range']) {
    width: 100%; color: inherit; background: var(--field); border: 1px solid var(--line); border-radius: 4px; padding: 6px 8px; font: inherit;
  }
  input.short:not([type='range']) { width: 64px; }
  textarea { resize: vertical; min-height: 44px; }
  button {
    color: var(--ink); background: transparent; border: 1px solid var(--line); border-radius: 4px; padding: 4px 9px; font: inherit; cursor: pointer;
  }
  button:hover:not(:disabled) { border-color: var(--accent); }
  button:disabled { opacity: 0.45; cursor: default; }
  button.main { background: var(--accent); border-color: var(--accent); color: var(--on); font-weight: 600; }
  button[aria-pressed='true'] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
  .row { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin-top: 6px; }
  .row > .grow { flex: 1; }
  .chips button { font-size: 12px; padding: 2px 8px; border-radius: 12px; text-align: left; color: var(--quiet); }
  .quiet { color: var(--quiet); }
  .said { font-size: 20px; font-weight: 650; margin: 2px 0; }
  .reasoning { font-style: italic; margin: 2px 0 8px; }
  .warn { color: var(--warn); }
  .bad { color: var(--bad); }
  [role='alert'] { position: sticky; bottom: 0; } /* in sight wherever the panel is scrolled to */
  #trouble { margin: 10px 0 0; padding: 6px 8px; border: 1px solid var(--bad); border-radius: 4px; background: var(--field); font-weight: 600; }
  dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 10px; margin: 0; }
  dt { color: var(--quiet); }
  dd { margin: 0; }
  ol { list-style: none; margin: 6px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px; }
  ol span:first-child { color: var(--accent); font-weight: 600; margin-right: 5px; }
  #regions button { padding: 2px 7px; }
  #earlier li, #earlier button, #marks li { width: 100%; text-align: left; }
  #marks { margin: 0; }
  #given li, #policies li { width: 100%; border-left: 2px solid var(--line); padding-left: 8px; }
  #given p, #policies p { margin: 2px 0; overflow-wrap: anywhere; }
  #queue li, #queue li button { width: 100%; text-align: left; }
  #marks li { justify-content: space-between; }
  .reward { font-size: 18px; font-weight: 650; }
  kbd { font: 600 10px/1 system-ui, sans-serif; color: var(--quiet); border: 1px solid var(--line); border-radius: 3px; padding: 1px 4px; margin-left: 3px; }
  button.main kbd { color: var(--on); border-color: currentColor; opacity: 0.75; }
  summary { cursor: pointer; color: var(--quiet); }
  .relevant { color: #5fd38d; } .missed { color: #ffb020; } .irrelevant { color: #ff7a70; }
  :host([light]) .relevant { color: #0b7a3b; } :host([light]) .missed { color: #8a5a00; } :host([light]) .irrelevant { color: #b3261e; }
  label { color: var(--quiet); }
  input[type='range'] { width: 100%; accent-color: var(--accent); }
`;
