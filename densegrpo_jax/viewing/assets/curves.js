// Curves of all runs, one plot per quantity. Plotly keeps zoom while news arrives.
'use strict';

const PLOTS = [
  ['Held-out score', (run) => [[`eval/${run.best}`, '']], 'eval/standard_error'],
  ['Reward of the training samples', () => [['train/reward', '']]],
  [
    'Other held-out scores',
    (run) =>
      Object.keys(run.series)
        .filter(
          (n) =>
            n.startsWith('eval/') &&
            !['standard_error', 'valid_share', 'seconds', run.best].includes(n.slice(5)) &&
            // with one reward the total is its score under another name
            String(run.series[n]) !== String(run.series[`eval/${run.best}`]),
        )
        .map((n) => [n, n.slice(5)]),
  ],
  [
    'Unseen scores, by the guard',
    (run) =>
      Object.keys(run.series)
        .filter((n) => n.startsWith('guard/') && !['fallen', 'brake', 'kl'].includes(n.slice(6)))
        .map((n) => [n, n.slice(6)]),
  ],
  ['Unseen scores that have fallen (count)', () => [['guard/fallen', '']]],
  // train/kl is all 0 where the KL is not measured
  [
    'KL from the base',
    (run) =>
      [
        ['train/kl', 'in training'],
        ['guard/kl', 'by the guard'],
      ].filter(([source]) => run.series[source]?.[1].some(Boolean)),
  ],
  ['Gradient norm', () => [['train/grad_norm', '']]],
  // runs of before have their sum alone
  [
    'Clipped transitions (share)',
    (run) =>
      run.series['train/clip_fraction_low']
        ? [
            ['train/clip_fraction_high', 'ratio too high'],
            ['train/clip_fraction_low', 'too low'],
          ]
        : [['train/clip_fraction', '']],
  ],
  ['Groups without spread (share)', () => [['steps/zero_spread', '']]],
  ['Advantage (mean of |A|)', () => [['steps/advantage_abs', '']]],
  ['Scored samples (share)', () => [['train/valid_share', '']]],
  [
    'Seconds of an update',
    (run) =>
      Object.keys(run.series)
        .filter((n) => n.startsWith('seconds/'))
        .map((n) => [n, n.slice(8)]),
  ],
  ['Samples per second', (run) => [[perSecond(run), '']]],
  ['Network evaluations per second', (run) => [[evaluationsPerSecond(run), '']]],
  // where the devices' peak is known
  ["Use of the devices' bfloat16 peak (share)", () => [['train/mfu', '']]],
];
const DASHES = ['solid', 'dot', 'dash', 'dashdot', 'longdash'];

function perSecond(run) {
  const seconds = run.series['seconds/iteration'];
  return seconds && [seconds[0], seconds[1].map((s) => run.samples / s)];
}

function evaluationsPerSecond(run) {
  const nfe = run.series['train/nfe'];
  const seconds = run.series['train/seconds'];
  if (!nfe || !seconds || nfe[0].length < 2) return null;
  const rate = nfe[1].slice(1).map((n, i) => (n - nfe[1][i]) / (seconds[1][i + 1] - seconds[1][i]));
  return [nfe[0].slice(1), rate];
}

function traces(runs, quantities, error) {
  return runs
    .flatMap((run, index) =>
      quantities(run).map(([source, part], place) => {
        const points = typeof source === 'string' ? run.series[source] : source;
        if (!points) return null;
        const names = [runs.length > 1 ? run.name : '', part].filter(Boolean);
        const single = runs.length === 1 && part;
        const made = {
          x: points[0],
          y: points[1],
          name: names.join(' ') || run.name,
          mode: points[0].length > 60 ? 'lines' : 'lines+markers',
          line: {
            color: colour(single ? place : index),
            dash: single ? 'solid' : DASHES[place % DASHES.length],
            width: 2,
          },
          marker: { size: 5 },
          showlegend: names.length > 0,
        };
        const errors = error && run.series[error];
        if (errors) {
          // a score or an error that is not finite is in no series
          const of = new Map(errors[0].map((step, at) => [step, errors[1][at]]));
          const array = points[0].map((step) => of.get(step) ?? 0);
          made.error_y = { type: 'data', array, visible: true, thickness: 1 };
        }
        return made;
      }),
    )
    .filter(Boolean);
}

function style(rangemode) {
  const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {
    gridcolor: of('--line'),
    zerolinecolor: of('--line'),
    color: of('--soft'),
    automargin: true,
  };
  return {
    paper_bgcolor: of('--panel'),
    plot_bgcolor: of('--panel'),
    font: { color: of('--ink'), size: 12 },
    xaxis: { ...axis, title: { text: 'updates', standoff: 6 } },
    yaxis: { ...axis, rangemode },
  };
}

const CONFIG = { responsive: true, displayModeBar: false };

function showCurves(runs) {
  const box = document.getElementById('plots');
  PLOTS.forEach(([title, quantities, error], index) => {
    const data = traces(runs, quantities, error);
    let plot = document.getElementById(`plot-${index}`);
    if (!data.length) return;
    if (!plot) {
      plot = element('div', {
        id: `plot-${index}`,
        className: 'plot',
        role: 'img',
        'aria-label': title,
      });
      const after = [...box.children].find((other) => Number(other.id.slice(5)) > index);
      box.insertBefore(plot, after || null);
    }
    const layout = {
      ...style(title.includes('share') ? 'tozero' : 'normal'),
      title: { text: title, font: { size: 14 }, x: 0.03, xanchor: 'left' },
      height: 260,
      margin: { l: 50, r: 14, t: 40, b: 42 },
      uirevision: 'kept',
      legend: { orientation: 'h', y: -0.28 },
    };
    Plotly.react(plot, data, layout, CONFIG);
  });
  if (!box.children.length) box.replaceChildren(element('p', { id: 'plot--1' }, 'No update yet.'));
  else document.getElementById('plot--1')?.remove();
}

function restyleCurves() {
  for (const plot of document.querySelectorAll('.js-plotly-plot')) Plotly.relayout(plot, style());
}
