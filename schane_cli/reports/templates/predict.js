// Search by class or file name, and the order within each class.
const tiles = [...document.querySelectorAll('.tiles figure')]
const search = document.getElementById('search')

function filter() {
  const wanted = search.value.trim().toLowerCase()
  let count = 0
  for (const tile of tiles) {
    tile.hidden = wanted !== '' && !tile.dataset.text.toLowerCase().includes(wanted)
    count += !tile.hidden
  }
  for (const group of document.querySelectorAll('.group'))
    group.hidden = !group.querySelector('figure:not([hidden])')
  document.getElementById('shown').textContent = `${count} of ${tiles.length} image${tiles.length === 1 ? '' : 's'}`
}

search.addEventListener('input', filter)
document.getElementById('reverse').addEventListener('change', () => {
  for (const grid of document.querySelectorAll('.tiles')) grid.append(...[...grid.children].reverse())
})
filter()
