// Runs the model in a worker, so that typing never waits for an answer.
import { open, Problem } from './model.js';

const messageOf = (error) => (error instanceof Problem ? error.message : `Something went wrong: ${error?.message ?? error}`);
const opened = open((fraction) => postMessage({ kind: 'progress', fraction }));

opened.then(
  (model) => postMessage({ kind: 'ready', facts: model.facts() }),
  (error) => postMessage({ kind: 'broken', message: messageOf(error) }),
);

onmessage = async ({ data: { number, text, hidden, words, count } }) => {
  const model = await opened;
  const started = performance.now();
  try {
    const answer = await model.answer(text, hidden, count);
    const unknown = model.unknownAmong(words);
    postMessage({ kind: 'answer', number, answer, unknown, milliseconds: performance.now() - started });
  } catch (error) {
    postMessage({ kind: 'problem', number, message: messageOf(error) });
  }
};
