// The page of `schane embed`: linked scatters with filter, search and a card on hover, and the other charts.
'use strict';
(async () => {
// plotly.js travels compressed: 2 MB of the page instead of 5.
{
  const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent), c => c.charCodeAt(0))
  const script = document.createElement('script')
  script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).text()
  document.head.append(script)
}
const data = JSON.parse(document.getElementById('data').textContent)
const byId = id => document.getElementById(id)
const decode = (text, Type) => new Type(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)
const labels = decode(data.labels, Uint16Array)
const views = data.views.map(view => ({ ...view,
  prediction: decode(view.prediction, Uint16Array), confidence: decode(view.confidence, Uint8Array),
  neighbours: decode(view.neighbours, labels.length > 65536 ? Uint32Array : Uint16Array), cosines: decode(view.cosines, Int8Array),
  points: { tsne: decode(view.tsne, Float32Array), pca: decode(view.pca, Float32Array) } }))
const state = { projection: 'tsne', hidden: new Set(), search: '', mistakes: false, held: null }
const element = view => byId(`scatter-${view}`)

// ---- look: the page's own colours, read again when light turns dark, and light on paper
let printing = false
function theme() {
  const style = getComputedStyle(document.documentElement)
  const read = name => style.getPropertyValue(name).trim()
  return printing ? { ink: '#111827', line: '#d1d5db', mark: '#2563eb', wrong: '#c2410c' }
    : { ink: read('--ink'), line: read('--line'), mark: read('--mark'), wrong: read('--wrong') }
}
function layout(more) {
  const { ink, line } = theme()
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true }
  const { xaxis = {}, yaxis = {}, ...rest } = more
  return { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { color: ink, size: 12,
    family: 'system-ui, sans-serif' }, margin: { l: 45, r: 10, t: 30, b: 40 }, xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis }, hoverlabel: { font: { family: 'system-ui, sans-serif' } },
    legend: { orientation: 'h', y: 1.02, yanchor: 'bottom' }, modebar: { bgcolor: 'rgba(0,0,0,0)', color: ink,
    activecolor: theme().mark }, ...rest }
}
// The buttons by name: the library's own set has one that sends the data to its maker's servers.
const config = { responsive: true, displaylogo: false, displayModeBar: true, modeBarButtons:
  [['toImage', 'zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d']] }
// One pixel drawn for one on the screen: the library's own 2 x 2 are four times the work without a graphics card.
const scatterConfig = { ...config, scrollZoom: true, plotGlPixelRatio: Math.max(1, devicePixelRatio) }
const plain = { responsive: true, displayModeBar: false }

// ---- scatters
const hasWebGL = (() => { try { return Boolean(document.createElement('canvas').getContext('webgl')) } catch { return false } })()
const touch = matchMedia('(pointer: coarse)').matches

function extent(points, offset) {
  let low = Infinity, high = -Infinity
  for (let i = offset; i < points.length; i += 2) { low = Math.min(low, points[i]); high = Math.max(high, points[i]) }
  const room = 0.04 * (high - low || 1)
  return [low - room, high + room]
}
function visible() {
  const shown = []
  for (let i = 0; i < labels.length; i++) {
    if (state.hidden.has(labels[i])) continue
    if (state.mistakes && !views.some(v => v.prediction[i] !== labels[i])) continue
    shown.push(i)
  }
  return shown
}
// Which images match the search: by their own name, or by that of their class or of a prediction.
const lowered = data.ids.map(id => id.toLowerCase()), loweredNames = data.classes.map(({ name }) => name.toLowerCase())
function matching() {
  if (!state.search) return Array.from(labels, () => true)
  const named = loweredNames.map(name => name.includes(state.search))
  return lowered.map((id, i) => named[labels[i]] || views.some(view => named[view.prediction[i]]) || id.includes(state.search))
}
function drawScatter(number, shown, matches) {
  const view = views[number], points = view.points[state.projection]
  const wrong = i => view.prediction[i] !== labels[i]
  const small = labels.length > 3000
  const trace = { type: hasWebGL ? 'scattergl' : 'scatter', mode: 'markers', hoverinfo: 'none', customdata: shown,
    x: shown.map(i => points[2 * i]), y: shown.map(i => points[2 * i + 1]),
    marker: { size: small ? 5 : shown.map(i => wrong(i) ? 10 : 7), line: { width: 0 },
      symbol: shown.map(i => wrong(i) ? 'x' : 'circle'),
      color: shown.map(i => data.classes[labels[i]].color + (matches[i] ? 'd9' : '14')) } }
  const share = index => state.projection === 'pca' ? ` (${view.pca_share[index]} ${data.share_unit} of variance)` : ''
  const names = { tsne: 't-SNE', pca: 'PCA' }
  const axis = index => ({ title: { text: `${names[state.projection]} ${index + 1}${share(index)}` }, zeroline: false,
    range: extent(points, index), showticklabels: state.projection === 'pca' })
  return Plotly.react(element(number), [trace], layout({ xaxis: axis(0), yaxis: axis(1), hovermode: 'closest',
    dragmode: touch ? false : 'pan', uirevision: state.projection, showlegend: false, shapes: rings(number) }),
    scatterConfig)
}
function drawScatters() {
  const shown = visible(), matches = matching()
  views.forEach((_, number) => drawScatter(number, shown, matches))
  const hits = state.search ? `, ${shown.filter(i => matches[i]).length} match` : ''
  byId('count').textContent = `${shown.length} of ${labels.length} shown${hits}`
}

// ---- the sample under the pointer: a ring in every scatter, small ones around its neighbours, and the card
const neighboursOf = (view, i) => Array.from({ length: data.k }, (_, j) =>
  ({ index: view.neighbours[i * data.k + j], cosine: view.cosines[i * data.k + j] / 100 }))

function rings(number) {
  if (state.held === null) return []
  const { ink, wrong } = theme(), view = views[number], points = view.points[state.projection]
  const ring = (i, radius, color, width) => ({ type: 'circle', xsizemode: 'pixel', ysizemode: 'pixel', xref: 'x',
    yref: 'y', xanchor: points[2 * i], yanchor: points[2 * i + 1], x0: -radius, x1: radius, y0: -radius, y1: radius,
    line: { color, width } })
  return [ring(state.held, 10, ink, 2.5), ...neighboursOf(view, state.held).map(({ index }) =>
    ring(index, 6, labels[index] === labels[state.held] ? ink : wrong, 1))]
}
function thumb(i, kind, title) {
  const span = document.createElement('span')
  span.className = `thumb ${kind}`
  span.title = title
  span.style.cssText = `--x:${i % data.columns};--y:${Math.floor(i / data.columns)}`
  return span
}
function line(text, kind, tag = 'p') {
  const node = document.createElement(tag)
  node.textContent = text
  node.className = kind || ''
  return node
}
function fillCard(i) {
  const card = byId('card'), head = document.createElement('header'), facts = document.createElement('div')
  const name = index => data.classes[index].name
  facts.append(line(`label: ${name(labels[i])}`), line(data.ids[i], 'note'))
  facts.firstChild.style.fontWeight = '600'
  const several = views.length > 1
  for (const view of views) {
    const right = view.prediction[i] === labels[i]
    facts.append(line(`${right ? '✓' : '✗'} ${several ? view.name + ': ' : 'prediction: '}${name(view.prediction[i])}, ` +
      `${view.confidence[i]} ${data.share_unit}`, right ? '' : 'wrong'))
  }
  head.append(thumb(i, '', data.ids[i]), facts)
  card.replaceChildren(head)
  for (const view of views) {
    const row = line('', 'row', 'div')
    row.append(...neighboursOf(view, i).map(({ index, cosine }) =>
      thumb(index, labels[index] === labels[i] ? 'same' : 'other', `${name(labels[index])}, cosine ${cosine}`)))
    card.append(line(`nearest${several ? ` by ${view.name}` : ''}, cosine ${neighboursOf(view, i)[0].cosine.toFixed(2)} ` +
      `to ${neighboursOf(view, i).at(-1).cosine.toFixed(2)}`, 'note', 'small'), row)
  }
}
function placeCard(event) {
  const card = byId('card'), gap = 18
  const before = event.clientX - gap - card.offsetWidth, after = event.clientX + gap
  const fits = after + card.offsetWidth < innerWidth
  const outwards = event.clientX < innerWidth / 2 && before > 8  // away from a second scatter
  const left = outwards || !fits ? Math.max(8, before) : after
  card.style.left = `${left}px`
  card.style.top = `${Math.max(8, Math.min(event.clientY - 40, innerHeight - card.offsetHeight - 8))}px`
}
function hold(i, event) {
  state.held = i
  byId('card').classList.toggle('open', i !== null)
  if (i !== null) { fillCard(i); placeCard(event) }
  views.forEach((_, number) => Plotly.relayout(element(number), { shapes: rings(number) }))
}
function listen(number) {
  const plot = element(number)
  const show = hit => hold(hit.points[0].customdata, hit.event)
  plot.on('plotly_hover', show)
  plot.on('plotly_click', show)
  if (!touch) plot.on('plotly_unhover', () => hold(null))
}

// ---- the other charts
function drawHistogram(number) {
  const { positive, negative, centres } = views[number].histogram, { mark, wrong } = theme()
  const bars = (y, name, color) => ({ type: 'bar', x: centres, y, name, marker: { color, line: { width: 0 } },
    opacity: 0.65, hovertemplate: `%{y:.2f} ${data.share_unit} at cosine %{x:.2f}<extra>${name}</extra>` })
  Plotly.react(byId(`histogram-${number}`), [bars(negative, 'different class', wrong), bars(positive, 'same class', mark)],
    layout({ barmode: 'overlay', bargap: 0, xaxis: { title: { text: 'cosine' }, range: data.cosine_range },
      yaxis: { title: { text: `${data.share_unit} of pairs` } } }), plain)
}
function drawHeatmap(number) {
  const names = data.order.map(label => data.classes[label].name), side = names.length
  const flat = decode(views[number].similarity, Float32Array), rows = []
  for (let i = 0; i < side; i++) rows.push(Array.from(flat.subarray(i * side, (i + 1) * side)))
  const few = side <= 30
  const axis = { type: 'category', showticklabels: few, showgrid: false, tickmode: few ? 'linear' : 'auto', ticks: '' }
  Plotly.react(byId(`heatmap-${number}`), [{ type: 'heatmap', z: rows, x: names, y: names, zmin: data.similarity_range[0],
    zmax: data.similarity_range[1], colorscale: 'Viridis', colorbar: { thickness: 10, outlinewidth: 0 },
    hovertemplate: '%{y} and %{x}: %{z:.3f}<extra></extra>' }],
    layout({ xaxis: axis, yaxis: { ...axis, autorange: 'reversed' } }), config)
}
function drawSpectrum() {
  const dashes = ['solid', 'dash', 'dot', 'dashdot']
  Plotly.react(byId('spectrum'), views.map((view, number) => ({ type: 'scatter', mode: 'lines', name: view.name,
    x: view.spectrum.map((_, i) => i + 1), y: view.spectrum, line: { dash: dashes[number % 4], width: 2 },
    hovertemplate: 'number %{x}: %{y:.4g}<extra>' + view.name.replace(/</g, '&lt;') + '</extra>' })),
    layout({ showlegend: views.length > 1, colorway: [theme().mark, theme().wrong, '#8b5cf6', '#16a5b8'],
      xaxis: { title: { text: 'singular value, largest first' } },
      yaxis: { type: 'log', title: { text: 'over the largest' }, exponentformat: 'power', dtick: 1 } }), plain)
}
function drawAll() {
  drawScatters()
  views.forEach((_, number) => { drawHistogram(number); drawHeatmap(number) })
  drawSpectrum()
}

// ---- controls
function chips() {
  const box = byId('chips')
  const press = () => {
    for (const chip of box.children) chip.setAttribute('aria-pressed', !state.hidden.has(Number(chip.dataset.label)))
  }
  const refresh = () => { press(); drawScatters() }
  const all = data.classes.map((_, label) => label)
  for (const [label, { name, color }] of data.classes.entries()) {
    const chip = line('', '', 'button'), dot = document.createElement('i')
    chip.dataset.label = label
    dot.style.background = color
    chip.append(dot, name)
    chip.onclick = () => { state.hidden.delete(label) || state.hidden.add(label); refresh() }
    chip.ondblclick = () => { state.hidden = new Set(all.filter(other => other !== label)); refresh() }
    box.append(chip)
  }
  byId('all').onclick = () => { state.hidden.clear(); refresh() }
  byId('none').onclick = () => { state.hidden = new Set(all); refresh() }
  press()
}
function controls() {
  const buttons = [...document.querySelectorAll('.switch button')]
  for (const button of buttons) button.onclick = () => {
    state.projection = button.value
    buttons.forEach(other => other.setAttribute('aria-pressed', other === button))
    drawScatters()
  }
  let waiting
  byId('search').oninput = event => {
    clearTimeout(waiting)
    waiting = setTimeout(() => { state.search = event.target.value.trim().toLowerCase(); drawScatters() }, 50)
  }
  byId('mistakes').onchange = event => { state.mistakes = event.target.checked; drawScatters() }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll)
  addEventListener('beforeprint', () => {
    printing = true
    for (const folded of document.querySelectorAll('section > details')) folded.open = true  // recipe, environment
    drawAll()
  })
  addEventListener('afterprint', () => { printing = false; drawAll() })
  addEventListener('pointerdown', event => {
    if (state.held !== null && !event.target.closest('.scatter')) hold(null)
  })
  addEventListener('scroll', () => { if (state.held !== null && !touch) hold(null) }, { passive: true })
}
controls()
chips()
drawAll()
views.forEach((_, number) => listen(number))
document.documentElement.dataset.ready = 'yes'
})()
