// The trajectory viewer: a group as a table. A row is a sample, a column a scored image of it. Under
// an image stand its score and the transition from its state.
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

function columnName(points, last) {
  if (points.some((p) => p.kind === 'state' && p.k === last)) return 'image';
  return points.map((p) => `${NAMES[p.kind] || p.kind} ${p.k}`).join(', ');
}

// Columns in the order of their first grid index; the sample's own image comes last.
function layout(group) {
  const last = Math.max(...group.columns.flatMap((c) => c.points.map((p) => p.k)), 0);
  const columns = group.columns.map((column, index) => ({
    index,
    points: column.points,
    name: columnName(column.points, last),
    k: column.points.length ? Math.min(...column.points.map((p) => p.k)) : 0,
    own: index === group.columns.length - 1,
  }));
  return columns.sort((a, b) => a.own - b.own || a.k - b.k || a.index - b.index);
}

// The transitions below a column: those that leave its states; others go below the sample's image.
function below(columns, group) {
  const of = columns.map(() => []);
  for (const transition of group.transitions) {
    const has = (p) => p.kind === 'state' && p.k === transition.k_from;
    const place = columns.findIndex((column) => column.points.some(has));
    of[place < 0 ? columns.length - 1 : place].push(transition);
  }
  return of;
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

function picture(run, group, row, column, scale) {
  const [width, height] = group.cell;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  return {
    width: `${w}px`,
    height: `${h}px`,
    backgroundImage: `url("${run.files}/${group.image}")`,
    backgroundSize: `${w * group.columns.length}px ${h * group.samples.length}px`,
    backgroundPosition: `-${w * column}px -${h * row}px`,
  };
}

function openLarge(run, group, sample, column, transitions, score) {
  const dialog = document.getElementById('large');
  // as large as the window lets it be, on a phone too
  const room = (window.innerWidth - 72) / group.cell[0];
  const scale = Math.min(4, Math.max(1, 480 / Math.max(...group.cell)), room);
  const facts = Object.entries(sample.scores).map(
    ([name, values]) => `${name} ${short(values[column.index])}`,
  );
  const steps = transitions.map((t) => {
    const advantage = t.row === null ? null : sample.advantages[t.row];
    const trained = advantage === null ? 'not trained' : `advantage ${short(advantage, 3)}`;
    return element(
      'div',
      {},
      `transition ${t.k_from} → ${t.k_to}: noise ${short(t.std)}, ${trained}`,
    );
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
    ...steps,
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
      ),
    );
    columns.forEach((column, place) => {
      const value = sample.scores[score][column.index];
      const steps = transitions[place].map((t) => {
        const advantage = t.row === null ? null : sample.advantages[t.row];
        const rise = gain(sample, columns, place, score);
        const text = [
          Number.isFinite(rise) ? `${rise >= 0 ? '+' : ''}${rise.toFixed(2)}` : '',
          advantage === null || advantage === undefined ? '' : `A ${short(advantage, 2)}`,
        ];
        const known = advantage !== null && advantage !== undefined;
        return element(
          'div',
          {
            className: known ? 'step' : 'step untrained',
            style: known ? { background: shade(advantage, strongest) } : {},
            title: `transition ${t.k_from} → ${t.k_to}, noise ${short(t.std)}`,
          },
          text.filter(Boolean).join(' · ') || 'silent',
        );
      });
      cells.push(
        element(
          'div',
          { className: 'cell' },
          element('button', {
            className: `picture ${scale > 1 ? 'pixels' : ''}`,
            style: picture(run, group, sample.index, column.index, scale),
            'aria-label': `sample ${sample.index}, ${column.name}, score ${short(value, 3)}`,
            onclick: () => openLarge(run, group, sample, column, transitions[place], score),
          }),
          element('div', { className: 'score' }, short(value, 3)),
          ...steps,
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
    return box.replaceChildren('No group on record (eval.groups=0, or no update yet).');
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
  const legend = element(
    'p',
    { className: 'legend' },
    'A column is a state of the trajectory, completed to an image by the ODE, or what else the ' +
      'method scores. Below an image stand its score and the transition that leaves the state: ' +
      'the gain to the next image, and its advantage A. Blue raises its probability, orange ' +
      'lowers it, dashed is not trained.',
  );
  renew(box, legend, controls, prompt, place);
}
