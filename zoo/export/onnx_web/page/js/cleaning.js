// The cleaning of sentences before they are tokenised: zoo/cleaning.py, which explains the sets of characters.

const FORMAT =
  "\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb" +
  "\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e007f}";
const JOINING =
  "\\u0600-\\u109f\\u1700-\\u1aff\\u1b00-\\u1cff\\ua800-\\uabff\\ufb50-\\ufdcf\\ufdf0-\\ufdff\\ufe70-\\ufefc" +
  "\\u{10a00}-\\u{11fff}\\u{1e900}-\\u{1e95f}";
const EMOJI = "\\u2190-\\u2bff\\u3030\\u303d\\ufe0f\\u{1f000}-\\u{1faff}";
const VANISHING = new RegExp(`[${FORMAT}]`, "gu");
const STRAY_JOINERS = new RegExp(`(?<![${JOINING}])\\u200c|(?<![${JOINING}${EMOJI}])\\u200d`, "gu");
const NO_TEXT = /[\u0000-\u001f\u007f-\u009f\ud800-\uf8ff\ufdd0-\ufdef\u{f0000}-\u{10ffff}]|[\ufffe\uffff]|\p{Noncharacter_Code_Point}/gu;
const BLANKS = /[ \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu; // those of Python's str.split

/** Return a sentence as nets are trained on it. */
export function clean(text) {
  const bare = text.replace(VANISHING, "").replace(STRAY_JOINERS, "").replace(NO_TEXT, " ");
  return bare.replace(BLANKS, " ").replace(/^ | $/g, "");
}
