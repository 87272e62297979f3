// Logits → answers, as `mlm_onnx.answer.tasks` and `mlm_onnx.answer.questions` decode them.
const LIKELY = 0.5; // a model of several labels predicts those above this probability

function softmax(logits) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const shares = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / total);
}

/** Return the labels with their probabilities, the likeliest first, and those predicted; of a regression the value. */
export function classified(logits, labels, problem) {
  if (problem === 'regression') return { value: logits[0] };
  const chances = problem === 'multi' ? Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit))) : softmax(logits);
  const ranked = labels.map((label, index) => ({ label, probability: chances[index] }));
  ranked.sort((one, other) => other.probability - one.probability);
  const predicted = problem === 'multi' ? ranked.filter(({ probability }) => probability > LIKELY) : ranked.slice(0, 1);
  return { labels: ranked, predicted: predicted.map(({ label }) => label) };
}

/** Return the entities of a text: words in order with their logits, tags in IOB2; an I- that continues none begins one. */
export function entitiesOf(words, logits, labels) {
  const found = [];
  words.forEach(({ start, end }, at) => {
    const chances = softmax(logits[at]);
    const best = logits[at].indexOf(Math.max(...logits[at]));
    if (labels[best] === 'O') return;
    const [letter, label] = [labels[best][0], labels[best].slice(2)];
    const before = found.at(-1);
    if (letter === 'I' && before?.next === at && before.label === label) {
      Object.assign(before, { end, next: at + 1 });
      before.chances.push(chances[best]);
    } else {
      found.push({ label, start, end, next: at + 1, chances: [chances[best]] });
    }
  });
  const mean = (chances) => chances.reduce((sum, chance) => sum + chance, 0) / chances.length;
  return found.map(({ label, start, end, chances }) => ({ label, start, end, probability: mean(chances) }));
}

/**
 * Return the best answer over all windows of a context: { start, end, probability }, both ends null for no answer.
 *
 * `rows` have `spans`, where each token stands in the context, and `logits`, two for each token.
 */
export function bestAnswer(rows, mostTokens, noAnswer) {
  const nothing = noAnswer ? Math.min(...rows.map(({ logits }) => Math.fround(logits[0] + logits[1]))) : -Infinity;
  const scores = [];
  let best = { score: -Infinity };
  for (const { spans, logits } of rows) {
    const inside = spans.map((span) => span !== null && span[0] < span[1]);
    for (let first = 0; first < spans.length; first++) {
      for (let last = first; inside[first] && last < Math.min(first + mostTokens, spans.length); last++) {
        if (!inside[last]) continue;
        const score = logits[2 * first] + logits[2 * last + 1];
        scores.push(score);
        if (score > best.score) best = { score, start: spans[first][0], end: spans[last][1] };
      }
    }
  }
  const most = Math.max(nothing, best.score);
  if (most === -Infinity) return { start: null, end: null, probability: 1 }; // a context without a token
  const total = scores.reduce((sum, score) => sum + Math.exp(score - most), Math.exp(nothing - most));
  if (best.score < nothing || !scores.length) return { start: null, end: null, probability: Math.exp(nothing - most) / total };
  return { start: best.start, end: best.end, probability: Math.exp(best.score - most) / total };
}
