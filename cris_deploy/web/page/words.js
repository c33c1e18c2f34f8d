// Expressions become tokens: CLIP's cleaning, then the byte-pair encoding of the bundle's tokenizer.json.
// What the engine does beyond this is to mend text whose encoding was mistaken.

import { Tokenizer } from "./vendor/tokenizers.mjs";

export class Words {
  /** `document` is the parsed tokenizer.json, `length` the tokens that the model reads. */
  constructor(document, length) {
    this.length = length;
    this.tokenizer = new Tokenizer(document, {});
    this.end = document.added_tokens.find((token) => token.content === "<end_of_text>").id;
  }

  /** Tokens (length) BigInt64Array, padded with 0, and whether the expression was cut. */
  encode(expression) {
    const text = clean(expression);
    if (!text) throw new Error("There are no words: say what to find, such as “the man in red”.");
    const { ids } = this.tokenizer.encode(text);
    const truncated = ids.length > this.length;
    const tokens = new BigInt64Array(this.length);
    ids.slice(0, this.length).forEach((id, index) => (tokens[index] = BigInt(id)));
    if (truncated) tokens[this.length - 1] = BigInt(this.end);
    return { tokens, truncated };
  }
}

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

export function clean(expression) {
  const text = unescape(unescape(
    expression
      .normalize("NFC")
      .replace(/[\u2018\u2019\u201a\u201b\u02bc]/g, "'")
      .replace(/[\u201c\u201d\u201e\u201f]/g, '"')
      .replace(/[\uff01-\uff5e\ufb00-\ufb06]/g, (wide) => wide.normalize("NFKC"))
      // Control characters that are no white space, and marks of byte order.
      .replace(/[\u0000-\u0008\u000e-\u001b\u007f\ufeff]/g, ""),
  ));
  return text.replace(/[\s\u001c-\u001f\u0085]+/g, " ").trim().toLowerCase();
}

function unescape(text) {
  return text.replace(/&(#x[\da-f]+|#\d+|[a-z]+);/gi, (whole, name) => {
    if (name[0] !== "#") return ENTITIES[name] ?? whole;
    const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}
