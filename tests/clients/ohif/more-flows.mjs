// Flows of a killed server, an odd study, the first minutes and the waiting times, with what flows.mjs shares.

export const more = ({ page, settings, SLOW, shot, text, place, drag, openStudy, ask }) => ({
  /** The server is killed, twice, and comes again: while a review is sent, and while a question is answered. */
  async restarted() {
    const ready = async () => {
      while (!(await fetch(`${settings.url}/sparsight/health/ready`).catch(() => null))?.ok) await page.waitForTimeout(300);
    };
    const trouble = async () => {
      await page.locator('#trouble').waitFor(SLOW);
      return text('#trouble');
    };
    await openStudy();
    const found = {};
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    await page.locator('#answer').fill(settings.right);
    await page.evaluate(() => document.activeElement?.blur());
    await fetch(settings.kill);
    await page.keyboard.press('s');
    found.away = await trouble();
    found.kept = await page.locator('#answer').inputValue();
    await ready();
    await page.keyboard.press('s');
    await page.locator('#reward').waitFor(SLOW);

    await page.locator('#question').fill(settings.question);
    await page.keyboard.press('Control+Enter');
    await page.waitForFunction(() => ['encoding', 'selecting', 'reading'].includes(document.querySelector('sparsight-panel').session.asking?.stage), null, SLOW);
    await fetch(settings.kill);
    found.cut = await trouble();
    found.question = await page.locator('#question').inputValue();
    await shot('ohif-21-cut');
    await ready();
    await page.keyboard.press('Control+Enter');
    await page.locator('#result').waitFor(SLOW);
    await page.reload(SLOW);
    await page.locator('#result').waitFor(SLOW);
    found.earlier = await page.locator('#earlier li').count();
    return found;
  },

  /** What goes wrong in a review: sent too early, a click instead of a drag, Ctrl+Enter in its field. */
  async slips() {
    await openStudy();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    const blur = () => page.evaluate(() => document.activeElement?.blur());
    const found = { begun: [], left: [] };
    await page.locator('#submit').scrollIntoViewIfNeeded();
    await page.locator('#submit').click();
    found.trouble = await text('#trouble');
    await page.waitForTimeout(500);
    /** Does nothing lie over the middle of it, and is it within the panel's window? */
    found.seen = await page.locator('sparsight-panel').evaluate(panel => ['trouble', 'submit'].map(id => {
      const { x, y, width, height } = panel.shadowRoot.getElementById(id).getBoundingClientRect();
      return panel.shadowRoot.elementFromPoint(x + width / 2, y + height / 2)?.id ?? '';
    }));
    await shot('ohif-25-trouble');

    await blur();
    const { x, y, width, height } = await place();
    const at = (u, v) => ({ x: x + width / 2 + u, y: y + height / 2 + v });
    /** What lies on the images by the viewer's own account, finished or not. */
    const drawn = () => page.locator('sparsight-panel').evaluate(panel => {
      const { exports } = panel.session.screen.manager.extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.common');
      return exports.getCornerstoneLibraries().cornerstoneTools.annotation.state.getAllAnnotations().length;
    });
    const follow = async () => {
      for (const [u, v] of [[40, 30], [70, 60]]) await page.mouse.move(at(u, v).x, at(u, v).y, { steps: 4 });
      await page.waitForTimeout(700);
      return drawn();
    };
    const begin = async tool => {
      await page.locator(`button[data-tool=${tool}]`).click();
      await blur();
      await page.keyboard.press('1');
      await page.locator('button[data-kind=relevant][aria-pressed=true]').waitFor(SLOW);
      await page.mouse.move(at(0, 0).x, at(0, 0).y);
      await page.mouse.down();
      if (tool === 'box') await page.mouse.up();
      found.begun.push(await follow());
    };
    for (const [tool, end] of [
      ['box', () => page.keyboard.press('Escape')],
      ['box', () => page.keyboard.press('4')], // another tool, then none
      ['stroke', () => page.keyboard.press('Escape')],
      ['box', () => page.locator('sparsight-panel').evaluate(panel => panel.session.show(panel.session.answer))], // another answer
    ]) {
      await begin(tool);
      await end();
      await page.mouse.up();
      found.left.push(await follow());
      await page.keyboard.press('Escape');
    }
    found.marks = await page.locator('#marks li').count();
    await shot('ohif-26-slips');
    await page.locator('button[data-tool=box]').click();
    await blur();
    await page.keyboard.press('1');
    await drag(at(-60, -40), at(40, 50));
    await page.locator('#marks li').first().waitFor(SLOW);
    found.drawn = await drawn();

    const margin = await page.locator('sparsight-panel').evaluate(panel => {
      const [[, viewport]] = panel.session.screen.viewports();
      return viewport.worldToCanvas(viewport.getImageData().imageData.indexToWorld([0, 0, 0]))[0];
    });
    await page.keyboard.press('1');
    await drag({ x: x + 0.3 * margin, y: y + 0.6 * height }, { x: x + 0.7 * margin, y: y + 0.7 * height });
    found.outside = [await text('#trouble'), (await page.locator('#marks li').count()), await drawn()];
    await page.keyboard.press('Escape');

    await page.locator('#answer').fill(settings.right);
    await page.keyboard.press('Control+Enter');
    await page.locator('#reward').waitFor(SLOW);
    return found;
  },

  /** A study whose texts are scripts, beside series that nobody can ask about. */
  async odd() {
    await page.addInitScript(() => (window.ran = 0));
    const ran = () => page.evaluate(() => window.ran);
    await page.goto(`${settings.url}/ohif/`, SLOW);
    await page.getByText('<script>', { exact: false }).first().waitFor(SLOW);
    await page.waitForTimeout(1000);
    const found = { ran: [await ran()], said: [] };
    await shot('ohif-22-odd-list');
    await openStudy();
    found.heading = await text('sparsight-panel h2 >> nth=0');
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    found.result = await text('#result');
    found.ran.push(await ran());
    const others = page.locator('[data-cy^="study-browser-thumbnail"]');
    found.series = await others.allInnerTexts();
    for (let n = 0; n < found.series.length; n++) {
      await others.nth(n).dblclick(SLOW);
      await page.waitForTimeout(2500);
      found.said.push(await text('sparsight-panel h2 >> nth=0'));
      await shot(`ohif-23-odd-${n}`);
    }
    found.ran.push(await ran());
    await page.goto(`${settings.url}/sparsight/`, SLOW);
    await page.locator('#study').waitFor(SLOW);
    await page.waitForTimeout(1000);
    found.ran.push(await ran());
    return found;
  },

  /** What the first minutes are: the address that `make demo` printed, another answer, its reward. */
  async newcomer() {
    await page.goto(settings.address, SLOW);
    await page.locator('#result').waitFor(SLOW);
    const found = { result: await text('#result') };
    await page.keyboard.press('c');
    await page.keyboard.type(settings.right);
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('s');
    await page.locator('#reward').waitFor(SLOW);
    found.reward = await text('#reward');
    await shot('ohif-24-newcomer');
    return found;
  },

  /** What a reader waits for, in ms from the key to the frame that shows it; `rounds` times each, warmed up once. */
  async times() {
    // before the panel's own listener, which lets nobody else hear its keys
    await page.addInitScript(() => window.addEventListener('keydown', event => (window.pressed = event), true));
    await openStudy();
    const found = { first: [], answer: [], overlay: [], reward: [], cancel: [] };
    const blur = () => page.evaluate(() => document.activeElement?.blur());
    /** Press a key; when each of `marks` was first to be seen, the last one at the latest after 20 s. */
    const seen = async (key, marks) => {
      await page.locator('sparsight-panel').evaluate((panel, [last, selectors]) => void (window.perceived = new Promise(resolve => {
        const [begun, times] = [performance.now(), selectors.map(() => null)];
        const drawn = () => [...document.querySelectorAll('canvas.sparsight-evidence')].some(c => (c.dataset.boxes ?? '[]') !== '[]');
        const there = name => (name === 'overlay' ? panel.session.answer && panel.session.tokens && drawn() : panel.shadowRoot.querySelector(name)?.textContent.trim());
        const look = now => {
          const start = window.pressed?.key === last ? window.pressed.timeStamp : 0;
          if (start > begun) selectors.forEach((name, i) => there(name) && (times[i] ??= now - start));
          if (times.at(-1) !== null || now - begun > 20_000) resolve(times);
          else requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
      })), [key.split('+').at(-1), marks]);
      await page.keyboard.press(key);
      const times = await page.evaluate(() => window.perceived);
      if (times.at(-1) === null) throw new Error(`${key}: no ${marks.at(-1)}`);
      return times;
    };
    for (let [round, end] = [0, Date.now() + 1000 * settings.seconds]; round <= settings.rounds && Date.now() < end; round++) {
      const keep = (name, ms) => round > 0 && found[name].push(ms);
      await page.locator('#question').fill(settings.question);
      const [first, answer, overlay] = await seen('Control+Enter', ['#stream .reasoning', '#result', 'overlay']);
      keep('first', first ?? answer); // within one frame
      keep('answer', answer);
      keep('overlay', overlay - answer);
      await blur();
      await page.keyboard.press('a');
      await page.waitForTimeout(300); // between two keys of a person: the first one's frame is out by then
      keep('reward', (await seen('s', ['#reward']))[0]);
      await page.locator('#question').focus();
      await page.keyboard.press('Control+Enter');
      await page.locator('#cancel').waitFor(SLOW);
      await blur();
      keep('cancel', (await seen('Escape', ['#ask']))[0]);
    }
    return found;
  },
});
