// Elements of the page.

/** Return a new element: its name, properties, and children (elements or texts). */
export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Return a number of bytes for people: "1.2 MB". */
export function bytes(count) {
  if (count < 1e3) return `${count} bytes`;
  return count < 1e6 ? `${Math.round(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

/** Return a share as "12.3 %". */
export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/**
 * Return a list of classes with bars.
 * @param {{name: string, score: number}[]} found classes, best first
 */
export function classList(found) {
  const list = element("ol", { className: "classes" });
  for (const { name, score } of found) {
    const line = element("div", { className: "line" }, element("span", {}, name));
    line.append(element("span", { className: "number" }, percent(score)));
    list.append(element("li", {}, line, bar(score)));
  }
  return list;
}

/** Return a bar; its length is an attribute of SVG, because the page's policy forbids inline styles. */
function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const rect = document.createElementNS(space, "rect");
  rect.setAttribute("width", `${100 * share}%`);
  rect.setAttribute("height", "100%");
  svg.append(rect);
  const track = element("div", { className: "track" });
  track.setAttribute("aria-hidden", "true");
  track.append(svg);
  return track;
}

/**
 * Return a place where files are chosen or dropped, and an example is offered.
 * @param {{what: string, accept: string, example: string, onFile: (file: Blob, name: string) => void,
 *   onError: (error: Error) => void}} settings `what` is "a picture" or "a clip"
 */
export function filePicker({ what, accept, example, onFile, onError }) {
  const input = element("input", { type: "file", accept, id: "file", className: "hidden-input" });
  const label = element("label", { htmlFor: "file", className: "button main" }, `Choose ${what}`);
  const button = element("button", { type: "button", id: "example" }, "Try the example");
  const hint = element("p", { className: "quiet" }, `or drop ${what} here`);
  const area = element("div", { className: "drop" }, input, label, button, hint);
  const take = (files) => {
    if (files.length > 1) onError(new Error(`Choose one file; ${files.length} were given.`));
    else if (files.length) onFile(files[0], files[0].name);
  };
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
  button.addEventListener("click", async () => {
    try {
      const answer = await fetch(example);
      if (!answer.ok) throw new Error(`${example}: the server answered ${answer.status}; serve the whole folder.`);
      onFile(await answer.blob(), example);
    } catch (error) {
      onError(error);
    }
  });
  // a file that is dropped beside the area must not replace the page
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
  area.addEventListener("dragover", () => area.classList.add("over"));
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    area.classList.remove("over");
    take(event.dataTransfer.files);
  });
  return area;
}
