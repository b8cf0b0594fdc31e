// Convert chips to the target prompt and back. Chips c_1 … c_n, each with the gap g before it, make
// the target c_1 g_2 c_2 … g_n c_n, without those that are blank, between the space that the text had
// around it. Both directions run in the page, so that both forms always agree, and a word that is
// retyped changes nothing else of the text.

const PIECE = /[\p{L}\p{N}\p{M}]+(?:['’][\p{L}\p{N}\p{M}]*)*|[^\s]/u; // a word, or a mark
const INDEFINITE = ["a", "an"];

function targetOf(chips, before = "") {
  const [, lead, trail] = before.match(/^(\s*)[^]*?(\s*)$/);
  const said = chips.filter((chip) => chip.text.trim());
  return lead + said.map((chip, k) => (k === 0 ? "" : chip.gap) + chip.text.trim()).join("") + trail;
}

// Fit "a" or "an" before chips[index] to the next word; an unchanged word keeps the source's.
function fitArticle(words, chips, index) {
  const says = (chip) => chip.text.trim();
  const article = chips.slice(0, index).findLast(says);
  const next = chips.slice(index).find(says);
  if (!article || !next || article.source === null) return;
  if (!INDEFINITE.includes(article.text.toLowerCase())) return;
  const own = words[article.source];
  const kept = next.source === article.source + 1 && next.text === words[next.source];
  const fitting = kept ? own : "aeiou".includes(says(next)[0].toLowerCase()) ? "an" : "a";
  if (fitting.length !== says(article).length) article.text = says(article)[0] + fitting.slice(1);
}

// Read a text as chips: words of the source where it has them, in order; weights stay with their
// words.
function chipsOf(words, text, before) {
  const pieces = piecesOf(words, text);
  const chips = [];
  const left = [...before];
  const put = (source, from, to) => {
    const said = from === to ? "" : text.slice(pieces[from].start, pieces[to - 1].end);
    const gap = from === to || from === 0 ? " " : text.slice(pieces[from - 1].end, pieces[from].start);
    const same = left.findIndex((chip) => chip.source === source && chip.text === said);
    const weight = same < 0 ? 1 : left.splice(same, 1)[0].weight; // equal words in order
    chips.push({ source, text: said, weight, gap });
  };
  let [i, j] = [0, 0];
  for (const [to, at] of [...anchorsOf(words, pieces.map((piece) => piece.text)), [words.length, pieces.length]]) {
    while (to - i > at - j) put(i++, j, j); // left out
    if (at - j > to - i) put(null, j, at - (to - i)); // put in
    for (j = at - (to - i); i < to; i += 1, j += 1) put(i, j, j + 1);
    if (to < words.length) put(i++, j++, at + 1);
  }
  return chips;
}

// Split a text into words and marks; a longer word of the source ("...", "<my-cat>") is one piece.
function piecesOf(words, text) {
  const odd = words.filter((word) => (word.match(PIECE) || [])[0] !== word);
  const whole = odd.sort((a, b) => b.length - a.length).map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  const found = text.matchAll(new RegExp([...whole, PIECE.source].join("|"), "giu"));
  return [...found].map((match) => ({ text: match[0], start: match.index, end: match.index + match[0].length }));
}

// List the words of a text that a model has not learnt, as `KnownWords.missing` does. `known` has the
// words that it may say, and the names of learnt tokens. While one is `typing`, the word at the end
// is none of them as long as a known word begins like it.
function missingWords(text, known, typing = false) {
  const escaped = known.learnt.map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  const plain = escaped.length ? text.replace(new RegExp(escaped.join("|"), "giu"), " ") : text;
  const missing = new Set();
  for (const { 0: piece, index } of plain.matchAll(new RegExp(PIECE.source, "gu"))) {
    const word = keyOf(piece.split(/['’]/)[0]);
    const unfinished = typing && index + piece.length === plain.length;
    if (!/[\p{L}\p{N}]/u.test(piece) || known.words.includes(word)) continue;
    if (!unfinished || !known.words.some((other) => other.startsWith(word))) missing.add(word);
  }
  return [...missing];
}

// The form that all spellings of a word share: composed, without case.
function keyOf(word) {
  return word.normalize("NFC").toUpperCase().toLowerCase().replaceAll("ς", "σ");
}

// Pair equal words: the heaviest common subsequence, where a short word ("of", ",") weighs less.
function anchorsOf(words, pieces) {
  const same = (i, j) => words[i].toLowerCase() === pieces[j].toLowerCase();
  const best = [...words, ""].map(() => Array(pieces.length + 1).fill(0));
  for (let i = words.length - 1; i >= 0; i -= 1) {
    for (let j = pieces.length - 1; j >= 0; j -= 1) {
      const both = same(i, j) ? best[i + 1][j + 1] + Math.min(words[i].length, 3) : 0;
      best[i][j] = Math.max(best[i + 1][j], best[i][j + 1], both);
    }
  }
  const anchors = [];
  for (let i = 0, j = 0; i < words.length && j < pieces.length; ) {
    if (best[i][j] === best[i + 1][j]) i += 1;
    else if (best[i][j] === best[i][j + 1]) j += 1;
    else anchors.push([i++, j++]);
  }
  return anchors;
}
