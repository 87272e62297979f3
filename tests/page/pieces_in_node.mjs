// Reads {kind: {tokenizer, mask, cases}} and prints what the page's pieces.js makes of the same cases.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [, , folder, questions] = process.argv;
const load = (name) => import(pathToFileURL(`${folder}/${name}`));
const [{ tokenizerOf }, { Pieces }] = await Promise.all([load('tokenizer.js'), load('pieces.js')]);

const answers = {};
for (const [kind, { tokenizer, mask, cases }] of Object.entries(JSON.parse(readFileSync(questions, 'utf8')))) {
  const made = tokenizerOf(tokenizer, { unk_token: tokenizer.model.unk_token });
  const pieces = new Pieces(made, tokenizer);
  const real = (text) => text.replaceAll('M', mask.text);
  const joined = (text, ...ids) => pieces.fill(real(text), mask.text, ids).map((part) => part.text).join('');
  const each = (object, answer) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, answer(key, value)]));
  answers[kind] = {
    reads: each(cases.reads, (text) => pieces.idsOf(real(text), mask)),
    pieces: each(cases.pieces, (piece, { filled }) => {
      const id = made.token_to_id(piece);
      return { shown: pieces.shown(id), filled: each(filled, (text) => joined(text, id)) };
    }),
    several: (cases.several ?? []).map(([text, names]) => joined(text, ...names.map((name) => made.token_to_id(name)))),
    targets: each(cases.targets, (word, places) => each(places, (before) => pieces.of(word, before))),
  };
}
console.log(JSON.stringify(answers));
