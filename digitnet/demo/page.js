// Sends the drawing to the server while it is drawn: one request at a time, of the newest state.
'use strict';

const byId = (id) => document.getElementById(id);
const paper = byId('paper');
const pen = {width: 0.075, step: 0.02};  // fractions of the paper's side
const mostBytes = 20 * 2 ** 20;
const sentSide = 112;  // pixels: four for each of the 28 that the network sees

// What is on the paper: strokes, each a list of [x, y] from 0 to 1, or an opened picture.
const empty = {strokes: [], picture: null};  // picture: {blob, bitmap}, each null if unreadable
let now = empty;
let past = [];  // earlier states, for undo
let pointer = null;  // the id of the pointer that draws
let cursor = null;  // {x, y, down} of the arrow keys
let version = 0;  // of the paper, so that a picture decoded late does not replace anything newer
let digits = [];  // of the last answer
let chosen = 0;  // the index of the digit shown

const isEmpty = () => !now.strokes.length && !now.picture;

function become(next) {
  past = [...past.slice(-99), now];
  now = next;
  version++;
}

function beginStroke(point) {
  become({strokes: [...now.strokes, [point]], picture: null});
}

function paint(canvas) {
  const context = canvas.getContext('2d');
  const side = canvas.width;
  context.fillStyle = 'white';
  context.fillRect(0, 0, side, side);
  const bitmap = now.picture?.bitmap;
  if (bitmap) {
    const {width, height} = bitmap;
    const scale = side / Math.max(width, height);
    context.drawImage(bitmap, (side - width * scale) / 2, (side - height * scale) / 2,
                      width * scale, height * scale);
  }
  context.strokeStyle = 'black';
  context.lineWidth = pen.width * side;
  context.lineCap = context.lineJoin = 'round';
  for (const stroke of now.strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    for (const [x, y] of stroke) context.lineTo(x * side, y * side);
    context.stroke();
  }
}

function repaint() {
  paint(paper);
  if (cursor) {
    const context = paper.getContext('2d');
    context.strokeStyle = cursor.down ? '#0072b2' : '#777777';
    context.lineWidth = 4;
    context.beginPath();
    context.arc(cursor.x * paper.width, cursor.y * paper.height,
                pen.width * paper.width / 2, 0, 7);
    context.stroke();
  }
  byId('undo').disabled = !past.length;
  byId('clear').disabled = isEmpty();
}

function changed() {
  repaint();
  ask();
}

// The request and its answer.

let asking = false;
let isStale = false;
let question = null;  // an AbortController
let asked = null;  // the picture in the current request; null for a drawing

async function ask() {
  isStale = true;
  if (isEmpty() || now.picture || asked) question?.abort();  // Do not wait for the old answer.
  if (asking) return;
  asking = true;
  while (isStale) {
    isStale = false;
    question = new AbortController();
    asked = now.picture;
    try {
      if (isEmpty()) show({digits: [], networks: []}, 'Nothing drawn yet.');
      else show(await answerOf(blobOf(), question.signal));
    } catch (error) {
      if (error.name !== 'AbortError') show({digits: [], networks: []}, error.message);
    }
  }
  asking = false;
  speak();
}

// The drawing as it is sent: on a canvas of its own, read back for every request.
const small = document.createElement('canvas');
small.width = small.height = sentSide;
small.getContext('2d', {willReadFrequently: true});

function blobOf() {
  if (now.picture) return now.picture.blob;
  paint(small);
  const {data} = small.getContext('2d').getImageData(0, 0, sentSide, sentSide);
  // PGM is plain grey bytes; browsers are slow to encode PNG.
  const grey = Uint8Array.from({length: sentSide ** 2}, (_, i) => data[4 * i]);
  return new Blob([`P5 ${sentSide} ${sentSide} 255\n`, grey]);
}

async function answerOf(blob, signal) {
  if (!blob) throw new Error('The file cannot be read; has it moved?');
  if (blob.size > mostBytes) throw new Error('More than 20 MiB; make the picture smaller.');
  const flags = ['several', 'saliency'].filter((id) => byId(id).checked);
  let response;
  let answer;
  try {
    response = await fetch('read?' + flags.map((id) => id + '=1').join('&'),
                           {method: 'POST', body: blob, signal});
    answer = await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server does not answer; is it still running?');
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const best = (probs) => probs.indexOf(Math.max(...probs));
const percent = (prob) => (100 * prob).toFixed(1) + ' %';

function show(answer, note = '') {
  if (answer.digits.length !== digits.length) chosen = 0;
  digits = answer.digits;
  byId('answer').value = digits.map((digit) => best(digit.probs)).join('') || '?';
  const row = byId('row');
  row.hidden = digits.length < 2;
  row.replaceChildren(...digits.map((digit, place) => {
    const button = document.createElement('button');
    const image = document.createElement('img');
    image.src = digit.seen;
    image.alt = '';
    button.type = 'button';
    button.append(image, String(best(digit.probs)));
    button.onclick = () => { chosen = place; showDigit(answer.networks); };
    return button;
  }));
  showDigit(answer.networks);
  if (note) byId('note').textContent = note;
}

function showDigit(networks) {
  const digit = digits[chosen];
  const probs = digit ? digit.probs : Array(10).fill(0);
  [...byId('row').children].forEach(
      (button, place) => button.setAttribute('aria-pressed', place === chosen));
  [...byId('bars').rows].forEach((line, number) => {
    line.className = digit && number === best(probs) ? 'best' : '';
    line.querySelector('.bar').style.width = 100 * probs[number] + '%';
    line.cells[2].textContent = digit ? percent(probs[number]) : '';
  });
  if (digit) {
    const sure = probs[best(probs)];
    const second = probs.map((prob, i) => i === best(probs) ? 0 : prob);
    byId('note').textContent = sure > 0.9 ? `${percent(sure)} sure` :
        `${percent(sure)} sure; or is it a ${best(second)}?`;
    byId('seen').src = digit.seen;
  }
  byId('seen').hidden = !digit;
  byId('overlay').hidden = !digit || !digit.saliency;
  if (digit && digit.saliency) byId('overlay').src = digit.saliency;
  byId('networks').hidden = !digit || networks.length < 2;
  byId('networks').tBodies[0].replaceChildren(...(digit ? networks : []).map((name, i) => {
    const line = document.createElement('tr');
    const cells = [name, best(digit.by_network[i]), percent(Math.max(...digit.by_network[i]))];
    line.append(...cells.map((text, column) => {
      const cell = document.createElement(column ? 'td' : 'th');
      cell.textContent = text;
      return cell;
    }));
    return line;
  }));
}

// For screen readers: when the drawing rests, and when the pen is set down or lifted.
let resting = 0;

function speak(pen = '') {
  if (pen) byId('spoken').textContent = pen;
  clearTimeout(resting);
  resting = setTimeout(() => {
    const answer = digits.length ? `${byId('answer').value}, ` : '';
    byId('spoken').textContent = answer + byId('note').textContent;
  }, 700);
}

// Mouse, touch and pen.

function placeOf(event) {
  const box = paper.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

paper.addEventListener('pointerdown', (event) => {
  if (pointer !== null || event.button) return;
  paper.setPointerCapture(event.pointerId);
  pointer = event.pointerId;
  cursor = null;
  beginStroke(placeOf(event));
  changed();
});
paper.addEventListener('pointermove', (event) => {
  if (event.pointerId !== pointer) return;
  const all = event.getCoalescedEvents?.() ?? [];
  now.strokes.at(-1).push(...(all.length ? all : [event]).map(placeOf));
  changed();
});
for (const end of ['pointerup', 'pointercancel']) {
  paper.addEventListener(end, (event) => {
    if (event.pointerId === pointer) pointer = null;
  });
}

// The keyboard.

const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

paper.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  const move = moves[event.key];
  if (!move && event.key !== ' ') return;
  event.preventDefault();
  if (!move && event.repeat) return;  // A held key counts as one press.
  cursor ??= {x: 0.5, y: 0.5, down: false};
  if (!move) {
    cursor.down = !cursor.down;
    speak(cursor.down ? 'pen down' : 'pen up');
    if (cursor.down) beginStroke([cursor.x, cursor.y]);
  } else {
    const within = (value) => Math.min(1, Math.max(0, value));
    cursor.x = within(cursor.x + move[0] * pen.step);
    cursor.y = within(cursor.y + move[1] * pen.step);
    if (cursor.down) now.strokes.at(-1).push([cursor.x, cursor.y]);
  }
  if (cursor.down) changed();
  else repaint();
});
paper.addEventListener('blur', () => { cursor = null; repaint(); });

document.addEventListener('keydown', (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey &&
      event.key.toLowerCase() === 'z') {
    event.preventDefault();
    undo();
  } else if (event.key === 'Escape') {
    clear();
  }
});

// Undo and clear.

function liftPen() {
  pointer = null;
  if (cursor) cursor.down = false;
}

function undo() {
  if (!past.length) return;
  liftPen();
  now = past.pop();
  version++;
  changed();
}

function clear() {
  if (isEmpty()) return;
  liftPen();
  become(empty);
  changed();
}

byId('undo').onclick = undo;
byId('clear').onclick = clear;
byId('several').onchange = byId('saliency').onchange = ask;

// Pictures: opened, pasted, dropped.

async function openPicture(file) {
  if (!file) return;
  const mine = ++version;
  // A copy, since the file may change or vanish while it is on the paper. Of one that is too
  // large, enough to tell.
  const blob = await file.slice(0, mostBytes + 1).arrayBuffer().then(
      (bytes) => new Blob([bytes]), () => null);
  // The server may still read what the browser cannot show, such as TIFF.
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (mine !== version) return;
  liftPen();
  become({strokes: [], picture: {blob, bitmap}});
  changed();
}

byId('file').onchange = (event) => {
  openPicture(event.target.files[0]);
  event.target.value = '';  // So that the same file can be opened again.
};
document.addEventListener('paste', (event) => openPicture(event.clipboardData.files[0]));
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dropping');
});
document.addEventListener('dragleave', () => document.body.classList.remove('dropping'));
document.addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dropping');
  openPicture(event.dataTransfer.files[0]);
});

for (let number = 0; number < 10; number++) {
  const line = byId('bars').tBodies[0].insertRow();
  line.innerHTML = `<th scope="row">${number}</th><td><div class="bar"></div></td><td></td>`;
}
repaint();
