// The button in a column's head sorts the table by it: numbers where every filled cell begins with one, else text.
'use strict'
{
  const text = (row, column) => row.children[column].textContent.trim()
  const number = value => parseFloat(value.replace(/,/g, '').replace('\u2212', '-'))
  function sort(head) {
    const table = head.closest('table'), column = [...head.parentNode.children].indexOf(head)
    const rows = [...table.tBodies[0].rows], filled = rows.filter(row => text(row, column))
    const numeric = filled.every(row => !isNaN(number(text(row, column))))
    // Numbers start with the largest, text with A.
    const first = numeric ? 'descending' : 'ascending', other = numeric ? 'ascending' : 'descending'
    const order = head.getAttribute('aria-sort') === first ? other : first
    const compare = (a, b) => numeric ? number(text(a, column)) - number(text(b, column))
      : text(a, column).localeCompare(text(b, column), undefined, { numeric: true })
    const sign = order === 'ascending' ? 1 : -1
    filled.sort((a, b) => sign * compare(a, b))
    table.tBodies[0].append(...filled, ...rows.filter(row => !text(row, column)))
    for (const one of head.parentNode.children) one.setAttribute('aria-sort', one === head ? order : 'none')
  }
  for (const head of document.querySelectorAll('th[aria-sort]')) head.addEventListener('click', () => sort(head))
  addEventListener('beforeprint', () => { for (const folded of document.querySelectorAll('section > details')) folded.open = true })
}
