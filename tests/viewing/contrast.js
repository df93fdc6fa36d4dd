// For every kind of element that has text of its own: the least contrast of that text with its ground,
// as WCAG 2.1 defines it. A ground that is transparent is its parent's.
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });

function rgba(text) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}

function over(top, under) {
  const share = top[3] / 255;
  return under.map((value, i) => top[i] * share + value * (1 - share));
}

function ground(e) {
  const below = e.parentElement ? ground(e.parentElement) : [255, 255, 255];
  return over(rgba(getComputedStyle(e).backgroundColor), below);
}

function luminance(colour) {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = colour.map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const worst = {};
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const skipped = e.closest('svg, .modebar, script, option') || !e.getClientRects().length;
  if (!own || skipped) continue;
  const under = ground(e);
  const pair = [over(rgba(getComputedStyle(e).color), under), under].map(luminance);
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  const name = e.className || e.tagName;
  worst[name] = Math.min(worst[name] || 99, ratio);
}
return worst;
