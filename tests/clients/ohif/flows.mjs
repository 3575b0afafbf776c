// What a radiologist does in OHIF, by mouse and keys; prints what was seen as JSON. Usage: node flows.mjs FLOW SETTINGS
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { more } from './more-flows.mjs';

const [flow, settings] = [process.argv[2], JSON.parse(process.argv[3])];
const { chromium } = createRequire(join(settings.client, 'package.json'))('playwright-core');
const SLOW = { timeout: 180_000 }; // software rendering on a shared core
const EVIDENCE = 'canvas.sparsight-evidence';

const browser = await chromium.launch({
  executablePath: settings.chromium,
  args: ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'],
});
const context = await browser.newContext({ viewport: settings.size ?? { width: 1400, height: 860 } });
const page = await context.newPage();
const [faults, elsewhere, posted] = [[], [], []];
page.on('pageerror', error => faults.push(String(error)));
page.on('request', request => {
  const url = request.url();
  if (!url.startsWith(settings.url) && !/^(data|blob|about):/.test(url)) elsewhere.push(url);
  if (request.method() === 'POST' && url.includes('/sparsight/')) posted.push([url.slice(settings.url.length), JSON.parse(request.postData() ?? 'null')]);
});

const shot = name => page.screenshot({ path: join(settings.artefacts, `${name}.png`) });
const text = async selector => (await page.locator(selector).innerText()).trim();
const boxes = n => page.locator(EVIDENCE).nth(n ?? 0).evaluate(canvas => JSON.parse(canvas.dataset.boxes ?? '[]'));
const place = () => page.locator(EVIDENCE).first().evaluate(canvas => {
  const { x, y, width, height } = canvas.getBoundingClientRect();
  return { x, y, width, height };
});
/** The slice on screen, as the viewer knows it. */
const onScreen = () => page.locator('sparsight-panel').evaluate(panel => panel.session.screen.shown());

/** The slice's number, from 1, as OHIF writes it in the corner of the image; that of its slider. */
const numbers = () => page.evaluate(() => ({
  corner: Number(/\((\d+)\/\d+\)/.exec(document.body.innerText)?.[1]),
  slider: 1 + Number(document.querySelector('input.imageSlider')?.value),
}));

/** Region n in each viewport that shows it: the box drawn, as OHIF itself says where it is in the patient. */
const inMillimetres = n => page.locator('sparsight-panel').evaluate((panel, region) => panel.session.screen.viewports().map(([id, viewport]) => {
  const canvas = viewport.element.querySelector('canvas.sparsight-evidence');
  const box = JSON.parse(canvas?.dataset.boxes ?? '[]').find(([number]) => number === region);
  const { viewPlaneNormal, focalPoint } = viewport.getCamera();
  const { x, y } = viewport.element.getBoundingClientRect();
  const corners = box ? [[box[1], box[2]], [box[3], box[4]]].map(point => [...viewport.canvasToWorld(point)]) : null;
  return { id, type: viewport.type, normal: [...viewPlaneNormal], focal: [...focalPoint], corners, box, x, y };
}), n);

async function openStudy() {
  await page.goto(`${settings.url}/ohif/sparsight?StudyInstanceUIDs=${settings.study}`, SLOW);
  await page.locator('sparsight-panel #ask:not([disabled])').waitFor(SLOW);
  await page.locator('.cornerstone-canvas').first().waitFor(SLOW);
  await page.waitForFunction(() => document.querySelector('sparsight-panel')?.session.shown?.image, null, SLOW);
  await page.waitForFunction(() => document.querySelector('sparsight-panel').session.suggestions.length > 0, null, SLOW);
}

/** Ask by keyboard; milliseconds to the first word, to the answer and to the overlay. */
async function ask(question) {
  await page.keyboard.press('/');
  await page.keyboard.press('Control+A');
  await page.keyboard.type(question);
  const watched = page.locator('sparsight-panel').evaluate(panel => new Promise(resolve => {
    const [start, seen] = [performance.now(), {}];
    const words = [];
    const look = () => {
      const { asking, answer, trouble } = panel.session;
      if (asking?.reasoning && asking.reasoning !== words.at(-1)) words.push(asking.reasoning);
      if (asking?.reasoning) seen.first ??= performance.now() - start;
      if (answer || trouble) seen.answer ??= performance.now() - start;
      const drawn = document.querySelector('canvas.sparsight-evidence')?.dataset.boxes;
      if ((answer && panel.session.tokens && drawn && drawn !== '[]') || trouble) resolve({ ...seen, overlay: performance.now() - start, words });
    };
    panel.session.addEventListener('change', look);
    document.addEventListener('CORNERSTONE_IMAGE_RENDERED', look, true);
    setInterval(look, 20);
  }));
  await page.keyboard.press('Control+Enter');
  return watched;
}

async function drag(from, to) {
  await page.mouse.move(from.x, from.y);
  await page.mouse.down();
  await page.mouse.move((from.x + to.x) / 2, (from.y + to.y) / 2, { steps: 4 });
  await page.mouse.move(to.x, to.y, { steps: 4 });
  await page.mouse.up();
}

const flows = {
  ...more({ page, settings, SLOW, shot, text, place, drag, openStudy, ask }),

  async whole() {
    await openStudy();
    await shot('ohif-1-opened');
    const times = await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    await page.waitForTimeout(1000);
    await shot('ohif-2-answered');
    const found = { times, result: await text('#result'), boxes: await boxes(), place: await place(), shown: await onScreen() };

    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('e');
    found.hidden = await boxes();
    await shot('ohif-3-hidden');
    await page.keyboard.press('e');

    await page.keyboard.press('1');
    await page.locator('button[data-kind=relevant][aria-pressed=true]').waitFor(SLOW);
    const { x, y, width, height } = found.place;
    const at = (u, v) => ({ x: x + width / 2 + u, y: y + height / 2 + v });
    found.dragged = [at(-60, -40), at(40, 50)];
    await drag(...found.dragged);
    await page.locator('#marks li').waitFor(SLOW);
    await page.keyboard.press('Control+Z');
    await page.locator('#marks li').waitFor({ ...SLOW, state: 'detached' });
    await page.keyboard.press('1');
    await drag(...found.dragged);
    await page.locator('#marks li').waitFor(SLOW);
    await page.keyboard.press('c');
    await page.keyboard.type(settings.right);
    await page.locator('#review').scrollIntoViewIfNeeded();
    await shot('ohif-4-corrected');
    await page.evaluate(() => document.activeElement?.blur());
    const start = Date.now();
    await page.keyboard.press('s');
    await page.locator('#reward').waitFor(SLOW);
    found.rewardMs = Date.now() - start;
    found.reward = await text('#reward');
    await page.locator('#reward').scrollIntoViewIfNeeded();
    await shot('ohif-5-reward');

    await page.reload(SLOW);
    await page.locator('#result').waitFor(SLOW);
    found.again = await text('#result');
    await page.keyboard.press('n');
    await page.waitForURL(url => !url.href.includes(settings.study), SLOW);
    await page.locator('sparsight-panel #ask:not([disabled])').waitFor(SLOW);
    found.next = page.url();
    return found;
  },

  async slices() {
    await openStudy();
    await ask(settings.question);
    await page.locator('#regions li').first().waitFor(SLOW);
    const jumps = [];
    for (let n = 0; n < (await page.locator('#regions li').count()); n++) {
      await page.locator('#regions button').nth(n).click();
      await page.waitForTimeout(1500);
      jumps.push({ n, image: (await onScreen()).image, boxes: await boxes(), ...(await numbers()) });
    }
    await shot('ohif-6-series');
    const { x, y, width, height } = await place();
    await page.mouse.move(x + width / 2, y + height / 2);
    await page.mouse.wheel(0, jumps.at(-1).corner > 1 ? -100 : 100);
    await page.waitForTimeout(1500);
    const wheel = { image: (await onScreen()).image, ...(await numbers()) };
    await page.reload(SLOW); // the answer is shown at once, and its heaviest region gone to
    await page.locator('#regions li').first().waitFor(SLOW);
    await page.waitForTimeout(1500);
    return { jumps, wheel, again: { image: (await onScreen()).image, ...(await numbers()) } };
  },

  async mpr() {
    await openStudy();
    await ask(settings.question);
    await page.locator('#regions li').first().waitFor(SLOW);
    await page.locator('[data-cy="Layout"]').click();
    await page.getByText('MPR', { exact: true }).first().click();
    await page.waitForFunction(() => [...document.querySelector('sparsight-panel').session.screen.viewports()].length === 3, null, SLOW);
    await page.waitForTimeout(3000);
    const planes = [];
    for (let n = 0; n < (await page.locator('#regions li').count()); n++) {
      await page.locator('#regions button').nth(n).click();
      await page.waitForTimeout(1500);
      planes.push({ n, viewports: await inMillimetres(n) });
    }
    await page.locator('#regions button').first().click();
    await page.waitForTimeout(1500);
    await shot('ohif-8-mpr');
    return { planes };
  },

  async kinds() {
    await openStudy();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    await page.evaluate(() => document.activeElement?.blur());
    await page.waitForTimeout(500);
    await shot('ohif-9-ring');
    await page.keyboard.press('e'); // nothing in the way
    const found = { place: await place(), stroke: [], point: null };
    const { x, y, width, height } = found.place;
    const at = (u, v) => ({ x: x + width / 2 + u, y: y + height / 2 + v });
    await page.keyboard.press('4');
    await page.locator('button[data-tool=stroke][aria-pressed=true]').waitFor(SLOW);
    await page.locator('#pen').fill('4');
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('2');
    found.stroke = [at(-70, 30), at(-20, -30), at(30, -35), at(70, 20)];
    await page.mouse.move(found.stroke[0].x, found.stroke[0].y);
    await page.mouse.down();
    for (const point of found.stroke.slice(1)) await page.mouse.move(point.x, point.y, { steps: 12 });
    await page.mouse.up();
    await page.locator('#marks li').waitFor(SLOW);
    await page.keyboard.press('4');
    await page.keyboard.press('1');
    found.point = at(-150, -150); // beside the stroke's own text
    await page.mouse.click(found.point.x, found.point.y);
    await page.locator('#marks li').nth(1).waitFor(SLOW);
    found.marks = await page.locator('#marks li b').allInnerTexts();
    await page.keyboard.press('c');
    await page.evaluate(() => document.activeElement?.blur());
    for (let n = 0; n < 3; n++) await page.keyboard.press('f');
    await page.locator('button[data-difficulty=hard][aria-pressed=true]').waitFor(SLOW);
    await page.locator('#review').scrollIntoViewIfNeeded();
    await shot('ohif-10-kinds');
    found.states = [];
    const becomes = async (state, work) => {
      await work();
      await page.locator(`#given li[data-state=${state}]`).waitFor(SLOW);
      found.states.push(state);
    };
    await becomes('draft', () => page.keyboard.press('d'));
    await becomes('submitted', () => page.locator('#given button[data-change=submit]').click());
    await page.evaluate(() => document.activeElement?.blur());
    await becomes('withdrawn', () => page.keyboard.press('w'));
    await becomes('submitted', () => page.keyboard.press('u'));
    await page.locator('#given').scrollIntoViewIfNeeded();
    await shot('ohif-10-life');
    await page.locator('#again').click();
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('t');
    await page.keyboard.press('s');
    await page.locator('#given li').nth(1).waitFor(SLOW);
    return found;
  },

  async blinded() {
    await openStudy();
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('b');
    await page.locator('#blind[aria-pressed=true]').waitFor(SLOW);
    await page.locator('#question').fill(settings.question);
    await page.keyboard.press('Control+Enter');
    await page.locator('#blinded').waitFor(SLOW);
    await shot('ohif-11-blinded');
    const { episode } = await page.locator('sparsight-panel').evaluate(panel => panel.session.withheld);
    const found = { episode, before: await page.locator('#result, #regions, #review').count(), boxes: await boxes() };
    found.status = await page.evaluate(async id => (await fetch(`/sparsight/episodes/${id}`)).status, episode);
    await page.reload(SLOW);
    await page.locator('#blinded').waitFor(SLOW); // a reload keeps it back
    await page.locator('#answer').fill(settings.right);
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('s');
    await page.locator('#own').waitFor(SLOW);
    found.own = await text('#own');
    found.result = await text('#result');
    await page.waitForTimeout(1000);
    await shot('ohif-12-revealed');
    return found;
  },

  async policies() {
    await openStudy();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    const found = { first: await text('#result') };
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('1');
    const { x, y, width, height } = await place();
    await drag({ x: x + width / 2 - 60, y: y + height / 2 - 40 }, { x: x + width / 2 + 40, y: y + height / 2 + 50 });
    await page.locator('#marks li').waitFor(SLOW);
    await page.keyboard.press('c');
    await page.keyboard.type(settings.right);
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('s');
    await page.locator('#reward').waitFor(SLOW);
    await page.locator('#queue summary').click();
    await page.locator('#queue li').first().waitFor(SLOW);
    found.queue = await page.locator('#queue li').allInnerTexts();
    await page.locator('#learning summary').click();
    await page.locator('#policies li').first().waitFor(SLOW);
    await page.locator('#learn').click();
    await page.locator('#policies li[data-state=candidate]').waitFor(SLOW);
    await page.locator('#learning').scrollIntoViewIfNeeded();
    await shot('ohif-13-candidate');
    await page.locator('#policies li[data-state=candidate] button').click();
    await page.locator('#policies li[data-state=retired]').waitFor(SLOW);
    found.live = await page.locator('#policies li[data-state=live]').getAttribute('data-policy');
    await page.locator('#question').scrollIntoViewIfNeeded();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    found.second = await text('#result');
    await shot('ohif-14-promoted');

    await page.getByText(/^Earlier answers/).click();
    await page.locator('#earlier li').nth(1).locator('button').click();
    await page.locator('#given li').first().waitFor(SLOW);
    found.learned = await text('#given');
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press('p');
    await page.locator('#stored').waitFor(SLOW);
    found.stored = await text('#stored');
    await page.reload(SLOW);
    await page.locator('.cornerstone-canvas').first().waitFor(SLOW);
    const others = page.locator('[data-cy="study-browser-thumbnail-no-image"]');
    await others.first().waitFor(SLOW);
    await page.waitForTimeout(2000);
    found.series = await others.allInnerTexts();
    await shot('ohif-15-series');
    await others.filter({ hasText: 'SR' }).first().dblclick();
    await page.waitForTimeout(6000);
    await shot('ohif-16-report');
    await others.filter({ hasText: 'SEG' }).filter({ hasText: /corrections/i }).first().dblclick();
    await page.getByRole('button', { name: 'Yes', exact: true }).first().click(SLOW);
    await page.waitForTimeout(4000);
    await shot('ohif-19-segmentation');
    const [mark] = posted.find(([path]) => path === '/sparsight/feedback')[1].marks;
    found.marked = await page.locator('sparsight-panel').evaluate((panel, box) => {
      const [[, viewport]] = panel.session.screen.viewports();
      const { x, y } = viewport.element.getBoundingClientRect();
      return box.map(corner => viewport.worldToCanvas(corner)).map(([u, v]) => [x + u, y + v]);
    }, mark.box_mm);
    await page.goto(`${settings.url}/ohif/`, SLOW);
    await page.getByText(/SR/).first().waitFor(SLOW);
    await page.waitForTimeout(1500);
    found.list = await page.locator('body').innerText();
    await shot('ohif-17-list');
    return found;
  },

  async reports() {
    const found = { shown: [] };
    for (const [n, study] of settings.studies.entries()) {
      await page.goto(`${settings.url}/ohif/sparsight?StudyInstanceUIDs=${study}`, SLOW);
      await page.locator('.cornerstone-canvas').first().waitFor(SLOW);
      await page.locator('[data-cy="study-browser-thumbnail-no-image"]').filter({ hasText: 'SR' }).first().dblclick(SLOW);
      await page.locator('svg.svg-layer polyline').first().waitFor(SLOW);
      await page.waitForTimeout(1000);
      // what OHIF draws of the report, in pixels of the image by OHIF's own account
      found.shown.push(
        await page.locator('sparsight-panel').evaluate(panel => {
          const [[, viewport]] = panel.session.screen.viewports();
          const { imageData } = viewport.getImageData();
          const drawn = [...viewport.element.querySelectorAll('svg.svg-layer polyline')];
          return {
            image: viewport.getCurrentImageId(),
            outlines: drawn.map(line => {
              const numbers = line.getAttribute('points').trim().split(/[ ,]+/).map(Number);
              const points = numbers.flatMap((x, i) => (i % 2 ? [] : [imageData.worldToIndex(viewport.canvasToWorld([x, numbers[i + 1]]))]));
              return [0, 1].map(axis => [Math.min(...points.map(p => p[axis])), Math.max(...points.map(p => p[axis]))]);
            }),
            text: viewport.element.querySelector('svg.svg-layer').textContent,
          };
        }),
      );
      await shot(`ohif-18-report-${n + 1}`);
    }
    return found;
  },

  /** The page for images without DICOM: ask, draw, correct. */
  async reader() {
    await page.goto(`${settings.url}/sparsight/reader?study=${settings.study}&question=${encodeURIComponent(settings.question)}`, SLOW);
    await page.locator('#answer .said').waitFor(SLOW);
    await page.waitForFunction(() => document.getElementById('canvas').width > 300, null, SLOW);
    await page.locator('#canvas').click(); // out of any field
    await page.keyboard.press('1');
    const at = await page.locator('#canvas').boundingBox();
    const [x0, y0, x1, y1] = settings.box; // shares of the image
    await drag({ x: at.x + x0 * at.width, y: at.y + y0 * at.height }, { x: at.x + x1 * at.width, y: at.y + y1 * at.height });
    await page.locator('#right').fill(settings.right);
    await page.locator('#amend').click();
    await page.waitForFunction(() => document.getElementById('reward').textContent, null, SLOW);
    await shot('reader');
    return { title: await page.title(), said: await text('#answer'), reward: await text('#reward'), status: await text('#status') };
  },

  async cancel() {
    await openStudy();
    let release;
    const held = new Promise(resolve => (release = resolve));
    await page.route('**/sparsight/ask', async route => {
      await held;
      await route.abort().catch(() => undefined);
    });
    await page.locator('#question').fill(settings.question);
    await page.keyboard.press('Control+Enter');
    await page.locator('#cancel').waitFor(SLOW);
    const start = Date.now();
    await page.keyboard.press('Escape');
    await page.locator('#ask').waitFor(SLOW);
    const cancelMs = Date.now() - start;
    release();
    return { cancelMs, trouble: await page.locator('#trouble').count() };
  },

  async hostile() {
    await page.addInitScript(() => (window.ran = 0));
    await openStudy();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    const ran = await page.evaluate(() => window.ran);
    return { ran, shown: await text('#result') };
  },

  async narrow() {
    await page.addInitScript(() => localStorage.setItem('sparsight:light', 'yes'));
    await openStudy();
    await ask(settings.question);
    await page.locator('#result').waitFor(SLOW);
    await page.waitForTimeout(1000);
    await shot('ohif-7-narrow-light');
    const wide = await page.locator('sparsight-panel').evaluate(panel => panel.scrollWidth <= panel.clientWidth + 1);
    return { wide };
  },
};

try {
  const found = await flows[flow]();
  console.log(JSON.stringify({ ...found, faults, elsewhere, posted }));
} catch (error) {
  await shot(`failed-${flow}`).catch(() => undefined);
  console.error(error, faults);
  process.exitCode = 1;
} finally {
  await browser.close();
}
