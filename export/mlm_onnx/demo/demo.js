// Runs once for each part of the page. `element` is the part; `trigger` notifies Python.
// Words: a toolbar, so that Tab enters it once and arrow keys move within it (WAI-ARIA's toolbar pattern).
const chips = () => [...element.querySelectorAll('.chip')];
let current = 0;

function enter(index) {
  const all = chips();
  if (!all.length) return;
  current = Math.max(0, Math.min(index, all.length - 1));
  all.forEach((chip, at) => { chip.tabIndex = at === current ? 0 : -1; });
}

element.addEventListener('click', (event) => {
  const chip = event.target.closest('.chip');
  if (!chip) return;
  enter(Number(chip.dataset.position));
  if (chip.getAttribute('aria-disabled') === 'true') return;
  chip.setAttribute('aria-pressed', String(chip.getAttribute('aria-pressed') !== 'true'));
  const pressed = chips().filter((each) => each.getAttribute('aria-pressed') === 'true');
  trigger('click', { hidden: pressed.map((each) => Number(each.dataset.position)) });
});

element.addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  if (!step || !event.target.closest('.chip')) return;
  event.preventDefault();
  enter(current + step);
  chips()[current].focus();
});

// Keep the state of the page in its address, so that the page can be shared.
function keep() {
  const answer = element.querySelector('[data-query]');
  if (!answer) return;
  const address = new URL(window.location), query = answer.dataset.query;
  new URLSearchParams(query).forEach((value, name) => {
    if (query.length <= 8000) address.searchParams.set(name, value);
    else address.searchParams.delete(name); // servers refuse longer addresses
  });
  window.history.replaceState(null, '', address);
}

watch('value', () => { enter(current); keep(); });
enter(0);
