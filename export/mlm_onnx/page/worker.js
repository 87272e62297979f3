// Runs a model in a worker, so that typing never waits for an answer.
import { Problem } from './problem.js';

const messageOf = (error) => (error instanceof Problem ? error.message : `Something went wrong: ${error?.message ?? error}`);

/**
 * Open a model and reply to the page's questions.
 *
 * `open(progress, known)` returns it; `known` gives the page what is known before everything is downloaded.
 */
export function serve(open) {
  const progress = (fraction) => postMessage({ kind: 'progress', fraction });
  const opened = open(progress, (facts) => postMessage({ kind: 'known', facts }));
  opened.then(
    (model) => postMessage({ kind: 'ready', facts: model.facts?.() }),
    (error) => postMessage({ kind: 'broken', message: messageOf(error) }),
  );
  onmessage = async ({ data: { number, question } }) => {
    const model = await opened;
    const started = performance.now();
    try {
      const answer = await model.reply(question);
      postMessage({ kind: 'answer', number, answer, milliseconds: performance.now() - started });
    } catch (error) {
      postMessage({ kind: 'problem', number, message: messageOf(error) });
    }
  };
}
