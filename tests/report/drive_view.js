"use strict";
// Uses the view as a reader would, and writes what it sees as JSON into the element "result".
(async () => {
  const byId = (name) => document.getElementById(name), result = { steps: [], errors: [] };
  addEventListener("error", (event) => result.errors.push(event.message));
  addEventListener("unhandledrejection", (event) => result.errors.push(String(event.reason)));
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const share = (canvas, test) => {
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const pen = copy.getContext("2d");
    pen.drawImage(canvas, 0, 0);
    const { data } = pen.getImageData(0, 0, copy.width, copy.height);
    let found = 0;
    for (let i = 0; i < data.length; i += 4) found += test(data[i], data[i + 1], data[i + 2]) ? 1 : 0;
    return found / (data.length / 4);
  };
  const magenta = (r, g, b) => r > 100 && g < 0.5 * r && b > 0.5 * r;
  const blue = (r, g, b) => b > 90 && b > 1.4 * r;
  const drag = (canvas, from, to) => {
    const box = canvas.getBoundingClientRect();
    const send = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
      clientX: box.left + 44 + x * (box.width - 54), clientY: box.top + 8 + y * (box.height - 44), pointerId: 1,
    }));
    send("pointerdown", from); send("pointermove", to); send("pointerup", to);
  };
  const hover = (canvas, [x, y]) => {
    const box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new PointerEvent("pointermove", {
      clientX: box.left + 44 + x * (box.width - 54), clientY: box.top + 8 + y * (box.height - 44), pointerId: 1,
    }));
  };
  const note = async (name) => {
    await wait(300);
    const stage = document.querySelector("#view-stage canvas");
    result.steps.push({
      name, title: byId("view-name").textContent, selection: byId("view-selection").value,
      readout: byId("view-readout").textContent, links: [...byId("view-links").children].map((a) => a.getAttribute("href")),
      map: byId("view-map-name").value, valid: byId("view-selection").checkValidity(),
      magenta: stage ? share(stage, magenta) : null, blue: stage ? share(stage, blue) : null,
      magenta_in_map: share(byId("view-map"), magenta), magenta_in_plot: share(byId("view-plot"), (r, g, b) => r > 1.2 * g && b > 1.1 * g),
      notice: document.querySelector("#view-stage .missing")?.textContent ?? "",
    });
  };
  while (!byId("view-readout").textContent) await wait(50);
  await note("start");
  hover(byId("view-map"), [0.105, 0.605]);
  await note("hover");
  drag(byId("view-map"), [0.105, 0.605], [0.205, 0.705]);
  await note("map");
  drag(byId("view-plot"), [0.305, 0.5], [0.405, 0.6]);
  await note("plot");
  byId("view-clear").click();
  await note("clear");
  byId("view-selection").value = "70 - 60, 3";
  byId("view-form").requestSubmit();
  await note("typed");
  byId("view-selection").value = "70-600";
  byId("view-form").requestSubmit();
  await note("beyond");
  byId("view-selection").value = "";
  byId("view-form").requestSubmit();
  const stage = document.querySelector("#view-stage canvas");
  if (stage) {
    // clicks on 20 places of the drawn residues: blue pixels with blue ones around them
    const copy = Object.assign(document.createElement("canvas"), { width: stage.width, height: stage.height });
    const pen = copy.getContext("2d");
    pen.drawImage(stage, 0, 0);
    const { data } = pen.getImageData(0, 0, copy.width, copy.height);
    const isBlue = (x, y) => blue(...data.subarray(4 * (y * copy.width + x), 4 * (y * copy.width + x) + 3));
    const around = [[0, 0], [5, 0], [-5, 0], [0, 5], [0, -5]], places = [];
    for (let y = 10; y < copy.height - 10; y++) {
      for (let x = 10; x < copy.width - 10; x++) if (around.every(([dx, dy]) => isBlue(x + dx, y + dy))) places.push([x, y]);
    }
    const box = stage.getBoundingClientRect();
    result.clicked = [];
    for (let i = 0; i < 20; i++) {
      const [x, y] = places[Math.floor((places.length * (i + 0.5)) / 20)];
      const at = { clientX: box.left + (x * box.width) / copy.width, clientY: box.top + (y * box.height) / copy.height };
      byId("view-clear").click();
      for (const type of ["mousedown", "mouseup"]) {
        stage.dispatchEvent(new MouseEvent(type, { ...at, bubbles: true, view: window }));
      }
      result.clicked.push(byId("view-selection").value);
    }
    byId("view-clear").click();
  }
  for (const style of ["atoms", "trace"]) {
    byId("view-style").value = style;
    byId("view-style").dispatchEvent(new Event("change"));
    await note(style);
  }
  byId("view-map-name").selectedIndex = 1;
  byId("view-map-name").dispatchEvent(new Event("change"));
  await note("second map");
  location.hash = "#structure-1";
  await wait(700);
  await note("second structure");
  result.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  result.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.append(Object.assign(document.createElement("pre"), { id: "result", textContent: JSON.stringify(result) }));
})();
