// The page: what it shows of each run, and how it keeps up with a run that goes on.
// Text from files enters the page as text (textContent), never as HTML.
'use strict';

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style') Object.assign(made.style, value);
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== 'list') made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const COLOURS = ['#2f7ed8', '#d9722b', '#2a9d6f', '#b0529c', '#8a7a1f', '#5c6bc0', '#c0392b'];
const colour = (index) => COLOURS[index % COLOURS.length];
const short = (value, digits = 4) => (Number.isFinite(value) ? value.toFixed(digits) : '–');

function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

const last = (series) => (series ? series[1][series[1].length - 1] : NaN);

function fact(name, value) {
  return element('span', {}, `${name} `, element('b', {}, value));
}

function showRuns(runs) {
  document.title = runs.map((run) => `${run.updates}/${run.iterations} ${run.name}`).join(', ');
  const boxes = runs.map((run, index) => {
    const scores = run.series[`eval/${run.best}`];
    const rise = scores ? `${short(scores[1][0])} → ${short(last(scores))}` : 'none yet';
    // later than 0 where other rewards began
    const from = scores?.[0][0] ? `, from update ${scores[0][0]}` : '';
    const of = `${run.updates} of ${run.iterations} updates`;
    return element(
      'div',
      { className: 'run', style: { borderColor: colour(index) } },
      element('h1', {}, run.label || run.name),
      element('progress', { max: run.iterations || 1, value: run.updates, 'aria-label': of }),
      element(
        'div',
        { className: 'facts' },
        fact('state', run.state),
        fact('', of),
        fact(`held-out ${run.best}${from}`, rise),
        fact('training', duration(last(run.series['train/seconds']))),
        run.state === 'running' ? fact('left', duration(run.left)) : null,
        fact(
          'network evaluations',
          Math.round(last(run.series['train/nfe']) || 0).toLocaleString('en'),
        ),
        fact('folder', run.folder),
      ),
      run.damaged.length
        ? element('div', { className: 'facts' }, fact('damaged files:', run.damaged.join('; ')))
        : null,
      run.advice
        ? element(
            'div',
            { className: 'facts' },
            run.advice,
            run.continue ? element('code', {}, run.continue) : null,
          )
        : null,
    );
  });
  document.getElementById('runs').replaceChildren(...boxes);
}

// Replaces what a box holds; the keyboard's focus stays on what has the same name.
function renew(box, ...children) {
  const focused = box.contains(document.activeElement) && document.activeElement;
  const name = focused && focused.getAttribute('aria-label');
  box.replaceChildren(...children);
  if (!name) return;
  const named = () => [...box.querySelectorAll('[aria-label]')];
  const find = () => named().find((e) => e.getAttribute('aria-label') === name);
  // a slider fills its table a moment later
  queueMicrotask(() => find()?.focus({ preventScroll: true }));
}

// News that changes nothing in a box leaves it alone: somebody may be dragging its slider.
const shownIn = new Map();

function isNews(box, facts) {
  const text = JSON.stringify(facts);
  if (shownIn.get(box) === text) return false;
  shownIn.set(box, text);
  return true;
}

// A slider over updates. It keeps its place when news arrives, and follows the newest otherwise.
function slider(steps, state, label, show) {
  const at = () =>
    state.step === null ? steps.length - 1 : Math.max(0, steps.indexOf(state.step));
  const value = element('output', {});
  const input = element('input', {
    type: 'range',
    min: 0,
    max: steps.length - 1,
    value: at(),
    'aria-label': label,
    oninput: () => {
      const index = Number(input.value);
      state.step = index === steps.length - 1 ? null : steps[index];
      told(index);
    },
  });
  function told(index) {
    value.textContent = `${steps[index]}`;
    input.setAttribute('aria-valuetext', `update ${steps[index]}`);
    show(steps[index]);
  }
  queueMicrotask(() => told(at()));
  return element('label', {}, 'update', input, value);
}

function chooser(names, chosen, label, choose) {
  const options = names.map((name, index) =>
    element('option', { value: index, selected: index === chosen }, name),
  );
  const made = element(
    'select',
    { 'aria-label': label, onchange: () => choose(Number(made.value)) },
    ...options,
  );
  return element('label', {}, label, made);
}

// The address of a picture; its time, because it may have been made anew. A page that is one file
// has its pictures in FILES.
function source(run, picture) {
  const name = `${run.files}/${picture.file}`;
  return window.FILES ? window.FILES[name] : `${name}?${picture.at}`;
}

const PICTURES = {
  'before_after.png': 'Held-out images before and after training',
  'reward_curve.png': 'Held-out score by update',
};

// What a finished run has made of itself, small; a click opens it in its own size.
function showPictures(runs) {
  const of = (run, picture) => {
    const what = PICTURES[picture.file] || picture.file;
    const says = `${what}${runs.length > 1 ? `, ${run.name}` : ''}`;
    const href = source(run, picture);
    const image = element('img', { src: href, alt: says, loading: 'lazy' });
    return element(
      'figure',
      {},
      // no browser opens the pictures of a page that is one file
      window.FILES ? image : element('a', { href, target: '_blank' }, image),
      element('figcaption', {}, says),
    );
  };
  const figures = runs.flatMap((run) => run.pictures.map((picture) => of(run, picture)));
  document.getElementById('pictures').replaceChildren(...figures);
}

const SHEETS = {
  key: 'sheets',
  none: 'No evaluation yet.',
  label: 'update of the evaluation',
  says: (step) => `Held-out images after ${step} updates, with scores and prompts`,
};
const VERDICTS = {
  key: 'verdicts',
  none: '',
  label: 'update of the verdict',
  title: 'Verdicts of the guard',
  text:
    'Prompts whose unseen scores lost most: at the start on the left, then on the right, from ' +
    'the same noise. The tests are in guard/verdict_UPDATES.html of the run.',
  says: (step) => `Images of prompts that lost most, at the start and after ${step} updates`,
};
const byStepState = Object.fromEntries(
  [SHEETS, VERDICTS].map(({ key }) => [key, { run: 0, step: null }]),
);

// Pictures of a run by update, with a slider.
function showByStep(runs, kind) {
  const box = document.getElementById(kind.key);
  const state = byStepState[kind.key];
  const having = runs.filter((run) => run[kind.key].length);
  if (!having.length) return box.replaceChildren(kind.none);
  const run = having[Math.min(state.run, having.length - 1)];
  const pictures = run[kind.key];
  const image = element('img', { className: 'sheet', loading: 'lazy' });
  const show = (step) => {
    image.src = source(run, pictures.find((picture) => picture.step === step));
    image.alt = kind.says(step);
  };
  const controls = element('div', { className: 'controls' });
  if (having.length > 1) {
    controls.append(
      chooser(
        having.map((r) => r.name),
        having.indexOf(run),
        'run',
        (index) => {
          state.run = index;
          showByStep(runs, kind);
        },
      ),
    );
  }
  controls.append(
    slider(
      pictures.map((picture) => picture.step),
      state,
      kind.label,
      show,
    ),
  );
  const head = kind.title
    ? [element('h3', {}, kind.title), element('p', { className: 'legend' }, kind.text)]
    : [];
  renew(box, ...head, controls, image);
}

function showSettings(runs) {
  const tables = runs.map(
    (run) => new Map(run.changes.map(([key, ...values]) => [key, values])),
  );
  const known = (key) => tables.map((of) => of.get(key)).find(Boolean);
  const isSet = (values) => Boolean(values) && values[1] !== null && values[1] !== values[0];
  // what was set beside the recipe first
  const isFirst = (key) => tables.some((of) => isSet(of.get(key)));
  const keys = [...new Set(tables.flatMap((of) => [...of.keys()]))].sort(
    (a, b) => isFirst(b) - isFirst(a) || (a < b ? -1 : 1),
  );
  const alone = runs.length === 1 && keys.some(isFirst);
  const cell = (values, key) => {
    const text = values ? values[0] : known(key)[2];
    return element('td', {}, isSet(values) ? element('strong', {}, text) : text);
  };
  const rows = keys.map((key) =>
    element(
      'tr',
      {},
      element('td', {}, element('code', {}, key)),
      ...tables.map((of) => cell(of.get(key), key)),
      ...(alone ? [element('td', {}, known(key)[1])] : []),
      element('td', {}, known(key)[2]),
    ),
  );
  const started = runs
    .filter((run) => run.command)
    .map((run) =>
      element(
        'p',
        { className: 'facts' },
        runs.length > 1 ? `${run.name}: started with` : 'started with',
        element('code', {}, run.command),
      ),
    );
  const names = runs.map((run) => (runs.length > 1 ? run.name : 'this run'));
  const head = ['key', ...names, ...(alone ? ['recipe'] : []), 'default'];
  const legend = keys.some(isFirst)
    ? 'Bold: set otherwise than in the recipe. The other keys differ from their defaults.'
    : 'Keys that differ from their defaults.';
  document
    .getElementById('settings')
    .replaceChildren(
      ...started,
      element('p', { className: 'legend' }, legend),
      element(
        'div',
        { className: 'scroll' },
        element(
          'table',
          {},
          element('thead', {}, element('tr', {}, ...head.map((text) => element('th', {}, text)))),
          element('tbody', {}, ...rows),
        ),
      ),
    );
}

function show(runs) {
  showRuns(runs);
  showCurves(runs);
  const of = (what) => runs.map((run) => [run.name, what(run)]);
  if (isNews('pictures', of((run) => run.pictures))) showPictures(runs);
  if (isNews('groups', of((run) => run.groups.map((g) => [g.file, g.at])))) showGroups(runs);
  for (const kind of [SHEETS, VERDICTS]) {
    if (isNews(kind.key, of((run) => run[kind.key]))) showByStep(runs, kind);
  }
  if (isNews('settings', of((run) => [run.changes, run.command]))) showSettings(runs);
}

// In a folder the data is a script; behind a server it is asked for, again and again.
const message = document.getElementById('message');
let seen = '';
let problems = ''; // of runs that cannot be read, while others have news

async function follow() {
  try {
    const answer = await fetch(`data.json?seen=${encodeURIComponent(seen)}`);
    if (answer.status === 200) {
      const news = await answer.json();
      seen = news.seen;
      problems = news.problems.join(' · ');
      if (news.runs.length) show(news.runs);
    } else if (answer.status !== 204) {
      throw new Error(await answer.text());
    }
    message.textContent = problems;
  } catch (error) {
    message.textContent = `No news from the server: ${error.message}. The page tries again.`;
  }
  setTimeout(follow, 5000);
}

// In a notebook's frame a link to a part of the page would lead to the notebook.
if (location.href === 'about:srcdoc') {
  document.querySelector('nav').addEventListener('click', (event) => {
    event.preventDefault();
    document.querySelector(event.target.hash || 'nav').scrollIntoView();
  });
}
if (window.RUNS) show(window.RUNS);
else follow();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => restyleCurves());
