// The trajectory viewer: a group as a table. A row is a sample, a column a scored image of it.
// Under an image stand its score and the transitions of its grid index.
'use strict';

const ORDERS = [
  ['best first', (a, b) => b.end - a.end],
  ['worst first', (a, b) => a.end - b.end],
  ['as sampled', (a, b) => a.index - b.index],
];
const groupState = { run: 0, step: null, group: 0, order: 0, score: 'total' };

const finite = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);

// Blue for a raised probability, orange for a lowered one; the strongest of the group is full.
function shade(advantage, strongest) {
  const share = strongest ? Math.min(1, Math.abs(advantage) / strongest) : 0;
  const tone = advantage >= 0 ? 'var(--good)' : 'var(--bad)';
  return `color-mix(in srgb, ${tone} ${Math.round(10 + 40 * share)}%, transparent)`;
}

const NAMES = { state: 'state', x0hat: 'prediction', anchor: 'anchor' };

function pointName(point) {
  if (point.kind === 'anchor') return 'anchor'; // its index is another one in every sample
  const [kind, stride] = point.kind.split(' by ');
  return `${NAMES[kind] || kind} ${point.k}${stride ? ` by ${stride}` : ''}`;
}

// The trajectory's end is "image", whatever other states have the same completion.
function columnName(points, last) {
  if (!points.some((p) => p.kind === 'state' && p.k === last)) {
    return points.map(pointName).join(', ');
  }
  return ['image', ...points.filter((p) => p.kind !== 'state').map(pointName)].join(', ');
}

// Columns in the order of their first grid index; the sample's own image comes last, the anchor
// before it.
function layout(group) {
  const last = Math.max(...group.columns.flatMap((c) => c.points.map((p) => p.k)), 0);
  const columns = group.columns.map((column, index) => {
    const placed = column.points.filter((p) => p.kind !== 'anchor');
    return {
      index,
      points: column.points,
      indices: placed.map((p) => p.k),
      name: columnName(column.points, last),
      k: placed.length ? Math.min(...placed.map((p) => p.k)) : last,
      own: index === group.columns.length - 1,
    };
  });
  return columns.sort((a, b) => a.own - b.own || a.k - b.k || a.index - b.index);
}

// The column below which the transition from grid index k stands, -1: left of all of them. It is
// the picture of k of any kind: the state that the transition leaves, the branch that it makes, or
// the prediction there, whose reward is the first that SDPO credits it with. The strides of a
// branch share its transition; it stands below the first stride, which the sample's own image has
// too. Without a picture of k it is the nearest one before.
function placeOf(columns, k) {
  const own = columns.length - 1;
  if (own === 0 || columns[own].indices.includes(k)) return own;
  const exact = columns.findIndex((column) => column.indices.includes(k));
  if (exact >= 0) return exact;
  const before = columns.map((c) => Math.max(-1, ...c.indices.filter((index) => index < k)));
  const nearest = Math.max(...before);
  return nearest < 0 ? -1 : before.indexOf(nearest);
}

// The transitions that stand below each column, and those left of all.
function below(columns, group) {
  const of = columns.map(() => []);
  const left = [];
  for (const transition of group.transitions) {
    const place = placeOf(columns, transition.k_from);
    (place < 0 ? left : of[place]).push(transition);
  }
  return { of, left };
}

// The samples that make a transition as one node of a tree, such as "2–3"; adjacent ones. A file
// without `together` has no trees.
function nodeName(group, transition, index) {
  const width = transition.together || 1;
  const first = index - (index % width);
  const end = Math.min(first + width, group.samples.length) - 1;
  return end > first ? `${first}–${end}` : '';
}

// With which samples a sample is one node, and up to which state.
function nodes(group, index) {
  const until = new Map();
  for (const transition of group.transitions) {
    const name = nodeName(group, transition, index);
    if (name) until.set(name, transition.k_to);
  }
  return [...until].map(([name, k]) => `${name} are one to state ${k}`);
}

function gain(sample, columns, place, score) {
  if (place + 1 >= columns.length) return NaN;
  const [here, next] = [columns[place], columns[place + 1]];
  const state = (column) => column.points.some((p) => p.kind === 'state');
  if (!state(here) || !state(next)) return NaN;
  return (
    finite(sample.scores[score][next.index], NaN) - finite(sample.scores[score][here.index], NaN)
  );
}

function transitionName(group, transition, index) {
  const node = nodeName(group, transition, index);
  return `transition ${transition.k_from} → ${transition.k_to}${node ? ` of ${node}` : ''}`;
}

const advantageOf = (sample, transition) =>
  transition.row === null ? null : (sample.advantages[transition.row] ?? null);

const signed = (rise) => `${rise >= 0 ? '+' : ''}${rise.toFixed(2)}`;

// The transitions of a sample that stand together. `k` are the grid indices of the picture above
// them: one transition of its own needs no name. `rise` is what they gain together.
function steps(group, sample, transitions, k, rise, strongest) {
  const alone = transitions.length === 1;
  const gained = Number.isFinite(rise) ? signed(rise) : '';
  const marks = transitions.map((t) => {
    const advantage = advantageOf(sample, t);
    const known = advantage !== null;
    const named = alone && k.includes(t.k_from) ? '' : `${t.k_from} → ${t.k_to}`;
    const text = [alone ? gained : '', known ? `A ${short(advantage, 2)}` : ''].filter(Boolean);
    const said = text.join(' · ') || (t.std === 0 ? 'silent' : 'not trained');
    return element(
      'div',
      {
        className: known ? 'step' : 'step untrained',
        style: known ? { background: shade(advantage, strongest) } : {},
        title: `${transitionName(group, t, sample.index)}, noise ${short(t.std)}`,
      },
      named ? `${named}: ${said}` : said,
    );
  });
  return alone || !gained ? marks : [element('div', { className: 'score' }, gained), ...marks];
}

function picture(run, group, row, column, scale) {
  const [width, height] = group.cell;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  return {
    width: `${w}px`,
    height: `${h}px`,
    backgroundImage: `url("${source(run, group)}")`,
    backgroundSize: `${w * group.columns.length}px ${h * group.samples.length}px`,
    backgroundPosition: `-${w * column}px -${h * row}px`,
  };
}

function openLarge(run, group, sample, column, transitions) {
  const dialog = document.getElementById('large');
  // as large as the window lets it be, on a phone too
  const room = (window.innerWidth - 72) / group.cell[0];
  const scale = Math.min(4, Math.max(1, 480 / Math.max(...group.cell)), room);
  const facts = Object.entries(sample.scores).map(
    ([name, values]) => `${name} ${short(values[column.index])}`,
  );
  const told = transitions.map((t) => {
    const advantage = advantageOf(sample, t);
    const trained = advantage === null ? 'not trained' : `advantage ${short(advantage, 3)}`;
    const name = transitionName(group, t, sample.index);
    return element('div', {}, `${name}: noise ${short(t.std)}, ${trained}`);
  });
  dialog.replaceChildren(
    element(
      'button',
      { className: 'close', onclick: () => dialog.close(), autofocus: true },
      'Close',
    ),
    element(
      'p',
      {},
      element('b', {}, column.name),
      `, sample ${sample.index}, update ${group.step}`,
    ),
    element('div', {
      className: `picture ${scale > 1 ? 'pixels' : ''}`,
      role: 'img',
      'aria-label': column.name,
      style: picture(run, group, sample.index, column.index, scale),
    }),
    element('p', { className: 'prompt' }, group.prompt),
    element('p', {}, facts.join(' · ')),
    ...told,
  );
  dialog.showModal();
}

function groupTable(run, group) {
  const columns = layout(group);
  const transitions = below(columns, group);
  const score = group.samples[0].scores[groupState.score]
    ? groupState.score
    : Object.keys(group.samples[0].scores)[0];
  const own = columns[columns.length - 1].index;
  const samples = group.samples.map((sample, index) => ({
    ...sample,
    index,
    end: finite(sample.scores[score][own], -Infinity),
  }));
  samples.sort(ORDERS[groupState.order][1]);
  const strongest = Math.max(
    0,
    ...group.samples.flatMap((s) => s.advantages.map((a) => Math.abs(a ?? 0))),
  );
  const scale = Math.max(96, Math.min(150, group.cell[0])) / group.cell[0];
  const cells = [element('div', { className: 'head' })];
  for (const column of columns) cells.push(element('div', { className: 'head' }, column.name));
  for (const sample of samples) {
    const whole =
      group.transitions.every((t) => t.row === null) && sample.advantages.length
        ? element('span', {}, `advantage ${short(sample.advantages[0], 2)}`)
        : null;
    cells.push(
      element(
        'div',
        { className: 'sample' },
        element(
          'b',
          {},
          finite(sample.end, NaN) === sample.end ? short(sample.end, 3) : 'no score',
        ),
        `sample ${sample.index}`,
        element('br'),
        whole,
        ...nodes(group, sample.index).map((node) => element('div', { className: 'node' }, node)),
        ...steps(group, sample, transitions.left, [], NaN, strongest),
      ),
    );
    columns.forEach((column, place) => {
      const value = sample.scores[score][column.index];
      const here = transitions.of[place];
      const rise = gain(sample, columns, place, score);
      cells.push(
        element(
          'div',
          { className: 'cell' },
          element('button', {
            className: `picture ${scale > 1 ? 'pixels' : ''}`,
            style: picture(run, group, sample.index, column.index, scale),
            'aria-label': `sample ${sample.index}, ${column.name}, score ${short(value, 3)}`,
            onclick: () => openLarge(run, group, sample, column, here),
          }),
          element('div', { className: 'score' }, short(value, 3)),
          ...steps(group, sample, here, column.indices, rise, strongest),
        ),
      );
    });
  }
  return element(
    'div',
    { className: 'table', style: { gridTemplateColumns: `auto repeat(${columns.length}, auto)` } },
    ...cells,
  );
}

function showGroups(runs) {
  const box = document.getElementById('viewer');
  const having = runs.filter((run) => run.groups.length);
  if (!having.length) {
    return box.replaceChildren('No group on record that can be read (eval.groups=0, or no update yet).');
  }
  const run = having[Math.min(groupState.run, having.length - 1)];
  const again = (change) => (value) => {
    change(value);
    showGroups(runs);
  };
  const numbers = [...new Set(run.groups.map((g) => g.group))];
  const number = numbers.includes(groupState.group) ? groupState.group : numbers[0];
  const shown = run.groups.filter((g) => g.group === number);
  const names = Object.keys(shown[0].samples[0].scores);
  const controls = element('div', { className: 'controls' });
  if (having.length > 1)
    controls.append(
      chooser(
        having.map((r) => r.name),
        having.indexOf(run),
        'run',
        again((v) => {
          groupState.run = v;
        }),
      ),
    );
  const prompt = element('p', { className: 'prompt' });
  const place = element('div', {
    className: 'scroll',
    tabIndex: 0,
    role: 'group',
    'aria-label': 'Samples of the group',
  });
  controls.append(
    slider(
      shown.map((g) => g.step),
      groupState,
      'update of the group',
      (step) => {
        const group = shown.find((g) => g.step === step);
        const left = place.scrollLeft;
        prompt.textContent = group.prompt;
        place.replaceChildren(groupTable(run, group));
        place.scrollLeft = left;
      },
    ),
  );
  if (numbers.length > 1)
    controls.append(
      chooser(
        numbers.map(String),
        numbers.indexOf(number),
        'group',
        again((v) => {
          groupState.group = numbers[v];
        }),
      ),
    );
  if (names.length > 1)
    controls.append(
      chooser(
        names,
        Math.max(0, names.indexOf(groupState.score)),
        'score',
        again((v) => {
          groupState.score = names[v];
        }),
      ),
    );
  controls.append(
    chooser(
      ORDERS.map(([name]) => name),
      groupState.order,
      'order',
      again((v) => {
        groupState.order = v;
      }),
    ),
  );
  const tree = shown.some((g) => g.transitions.some((t) => t.together > 1));
  const legend = element(
    'p',
    { className: 'legend' },
    'A column is a state of the trajectory, completed to an image by the ODE, or what else the ' +
      'method scores: branches, predictions. Below an image stand its score and the transition ' +
      'of its grid index, and those after it up to the next image: the gain to the next image, ' +
      'and the advantage A; what comes before the first image stands left of it. Blue raises its ' +
      'probability, orange lowers it, dashed is not trained.',
    tree
      ? ' A tree: "2–3 are one to state 4" names samples that are one node until then; "as ' +
          'sampled" puts them side by side.'
      : null,
  );
  renew(box, legend, controls, prompt, place);
}
