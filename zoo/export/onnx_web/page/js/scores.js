// Scores of classes.

/** Return the softmax of logits. */
export function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (x) => Math.exp(x - largest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / total);
}

/** Return the best classes as [{name, score}], best first. */
export function best(scores, classes, count = 5) {
  return Array.from(scores, (score, i) => ({ name: classes[i] ?? `class ${i}`, score }))
    .sort((a, b) => b.score - a.score)
    .slice(0, count);
}
