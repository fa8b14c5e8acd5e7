// Decisions by keyboard, kept in this browser, and taken away as the CSV files that data.relabel and data.exclude read.
const cards = [...document.querySelectorAll('.cards figure')]
const store = 'schane-review:' + location.pathname
const names = { k: 'keep', w: 'wrong', x: 'out', u: 'unsure' }
let choices = {}
try { choices = JSON.parse(localStorage.getItem(store)) || {} } catch { choices = {} }
const key = card => card.dataset.kind + ' ' + card.dataset.path

function show() {
  for (const card of cards) {
    const choice = choices[key(card)]
    if (choice) card.dataset.choice = choice
    else delete card.dataset.choice
  }
  const count = cards.filter(card => card.dataset.choice).length
  document.getElementById('state').textContent = `${count} of ${cards.length} decided`
}

function decide(card, choice) {
  if (choice) choices[key(card)] = choice
  else delete choices[key(card)]
  try { localStorage.setItem(store, JSON.stringify(choices)) } catch { /* a page without storage keeps them while open */ }
  show()
}

function move(from, by) {
  const next = cards[cards.indexOf(from) + by]
  if (next) { next.focus(); next.scrollIntoView({ block: 'nearest' }) }
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  const card = document.activeElement.closest('.cards figure') || null
  if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') {
    if (card) move(card, event.key === 'ArrowRight' ? 1 : -1)
    else if (cards.length) cards[0].focus()
    event.preventDefault()
  } else if (card && event.key in names) {
    decide(card, names[event.key])
    move(card, 1)
  } else if (card && event.key === '0') decide(card, null)
})

// A text that a spreadsheet would compute goes behind an apostrophe, as in spreadsheets.py.
const safe = text => /^[=+\-@\t\r']/.test(text) ? "'" + text : text
const quoted = text => /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text

function download(name, head, rows) {
  const lines = [head, ...rows].map(row => row.map(safe).map(quoted).join(','))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([lines.join('\n') + '\n'], { type: 'text/csv' }))
  link.download = name
  link.click()
  URL.revokeObjectURL(link.href)
}

const chosen = choice => cards.filter(card => card.dataset.choice === choice)
document.getElementById('relabel').addEventListener('click', () => download('relabel.csv', ['path', 'label'],
  chosen('wrong').map(card => [card.dataset.path, card.dataset.suggested])))
document.getElementById('exclude').addEventListener('click', () => download('exclude.csv', ['path'],
  chosen('out').map(card => [card.dataset.path])))
document.getElementById('choices').addEventListener('click', () => download('choices.csv',
  ['path', 'kind', 'label', 'suggested', 'choice'], cards.filter(card => card.dataset.choice).map(card =>
    [card.dataset.path, card.dataset.kind, card.dataset.label, card.dataset.suggested, card.dataset.choice])))
show()
