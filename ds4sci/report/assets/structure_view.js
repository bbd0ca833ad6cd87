"use strict";
// View of one structure at a time: 3-D (3Dmol.js), pLDDT along the sequence, map of residue pairs. Residues count from 1.
(() => {
  const element = (name) => document.getElementById(`view-${name}`);
  const data = JSON.parse(element("data").textContent);
  const stage = element("stage"), plot = element("plot"), map = element("map"), readout = element("readout");
  const SELECTED = ["#d4149b", "#0a8f4b"]; // not in the colours of the confidence
  const MARGIN = { left: 44, right: 10, top: 8, bottom: 36 };
  const SIDE_CHAINS_UP_TO = 40; // selected residues that are drawn with side chains
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let viewer = null; // null without WebGL
  let current = null; // the structure that is shown: its data, models and unpacked maps
  let ranges = []; // selected residues, [first, last]
  let drag = null;

  // ---- data

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // mmCIF has no limits on numbers; the parser of 3Dmol finds bonds and secondary structure.
  async function modelText(sequence, chains, { scale, atoms, data: text }) {
    const bytes = await unpack(text), n = sequence.length;
    const columns = bytes.subarray(n, n + atoms);
    const steps = new DataView(bytes.buffer, n + atoms);
    const axis = (which) => {
      let value = 0;
      return Array.from({ length: atoms }, (_, i) => {
        value = ((value + steps.getInt16(2 * (which * atoms + i), true)) << 16) >> 16; // wraps like int16
        return (value * scale).toFixed(3);
      });
    };
    const [x, y, z] = [axis(0), axis(1), axis(2)];
    const keys = ["group_PDB", "id", "type_symbol", "label_atom_id", "label_comp_id", "label_asym_id", "label_seq_id"];
    const lines = ["data_", "loop_", ...[...keys, "Cartn_x", "Cartn_y", "Cartn_z"].map((key) => `_atom_site.${key}`)];
    let atom = 0;
    const names = chains.flatMap(([name, length]) => Array(length).fill(name));
    for (let residue = 0; residue < n; residue++) {
      const name = data.residue_names[sequence[residue]] ?? "UNK";
      for (const end = atom + bytes[residue]; atom < end; atom++) {
        const label = data.atom_names[columns[atom]];
        lines.push(`ATOM ${atom + 1} ${label[0]} ${label} ${name} ${names[residue]} ${residue + 1} ${x[atom]} ${y[atom]} ${z[atom]}`);
      }
    }
    return { text: lines.join("\n") + "\n#\n", only_ca: atoms > 0 && columns.every((column) => column === 1) };
  }

  // ---- colours

  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const mix = (a, b, share) => {
    const [from, to] = [parts(a), parts(b)];
    return "#" + from.map((v, i) => Math.round(v + (to[i] - v) * share).toString(16).padStart(2, "0")).join("");
  };
  const ramp = (stops, share) => {
    const at = Math.min(share * (stops.length - 1), stops.length - 1.001), index = Math.floor(at);
    return mix(stops[index], stops[index + 1], at - index);
  };
  const confidence = (plddt) => data.confidence.find(([least]) => plddt >= least) ?? data.confidence.at(-1);
  const selectedAs = (residue) => ranges.findIndex(([first, last]) => first <= residue && residue <= last);

  function residueColour(residue) {
    const colour = confidence(current.plddt[residue - 1])[1], place = selectedAs(residue);
    if (!ranges.length) return colour;
    return place < 0 ? mix(colour, dark.matches ? "#3a424c" : "#e9edf1", 0.72) : SELECTED[place % SELECTED.length];
  }

  // ---- 3-D structure

  function notice(words) {
    stage.replaceChildren(Object.assign(document.createElement("p"), { className: "missing", textContent: words }));
  }

  function makeViewer() {
    const probe = document.createElement("canvas");
    if (!probe.getContext("webgl2") && !probe.getContext("webgl")) {
      notice("This browser offers no WebGL, which the 3-D view needs. The plots and the files work without it.");
      return;
    }
    viewer = $3Dmol.createViewer(stage, { backgroundColor: theme("paper") });
    // the wheel scrolls the page until the view is clicked
    stage.addEventListener("wheel", (event) => {
      if (!stage.contains(document.activeElement)) event.stopImmediatePropagation();
    }, { capture: true });
    stage.addEventListener("pointerdown", () => stage.focus({ preventScroll: true }));
    stage.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
      const zooms = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 };
      if (turns[event.key]) viewer.rotate(...turns[event.key]);
      else if (zooms[event.key]) viewer.zoom(zooms[event.key]);
      else return;
      event.preventDefault();
      viewer.render();
    });
  }

  function drawModels() {
    if (!viewer) return;
    viewer.removeAllModels();
    for (const kind of ["truth", "prediction"]) {
      if (current.models[kind]) current[kind + "Model"] = viewer.addModel(current.models[kind].text, "cif");
    }
    const model = current.predictionModel;
    model.setClickable({}, true, (atom) => select([[atom.resi, atom.resi]]));
    model.setHoverable({}, true, (atom) => { readout.textContent = residueText(atom.resi); }, showSelection);
    viewer.setHoverDuration(60);
    viewer.resize();
    zoomTo({}, current.truth ? 1 : 1.2);
  }

  function zoomTo(atoms, factor) {
    viewer.zoomTo(atoms);
    viewer.zoom(factor);
  }

  function drawStyle() {
    if (!viewer) return;
    const style = element("style").value;
    const trace = (kind) => style === "trace" || current.models[kind].only_ca;
    const cartoon = (kind, colour) =>
      ({ cartoon: trace(kind) ? { ...colour, style: "trace", thickness: 0.35 } : { ...colour, style: "oval", arrows: true } });
    const byResidue = { colorfunc: (atom) => residueColour(atom.resi) };
    const chosen = ranges.flatMap(([a, b]) => Array.from({ length: b - a + 1 }, (_, i) => a + i));
    const model = current.predictionModel;
    model.setStyle({}, cartoon("prediction", byResidue));
    const sticks = { stick: { ...byResidue, radius: 0.14 } };
    if (style === "atoms") model.setStyle({}, sticks, true);
    else if (chosen.length && chosen.length <= SIDE_CHAINS_UP_TO) model.setStyle({ resi: chosen }, sticks, true);
    if (current.truthModel) {
      const colour = { color: data.true_colour, opacity: 0.75 };
      current.truthModel.setStyle({}, element("truth").checked ? cartoon("truth", colour) : {});
    }
    viewer.render();
  }

  // ---- plots

  // Residues before each chain but the first: the borders of the chains of a complex.
  function borders() {
    let sum = 0;
    return current.chains.slice(0, -1).map(([, length]) => (sum += length));
  }

  function drawBorders(pen, box, both) {
    const n = current.sequence.length;
    pen.strokeStyle = theme("ink");
    pen.lineWidth = 1;
    for (const border of borders()) {
      pen.beginPath();
      pen.moveTo(box.left + (border / n) * box.width, box.top);
      pen.lineTo(box.left + (border / n) * box.width, box.top + box.height);
      if (both) {
        pen.moveTo(box.left, box.top + (border / n) * box.height);
        pen.lineTo(box.left + box.width, box.top + (border / n) * box.height);
      }
      pen.stroke();
    }
  }

  function context(canvas) {
    const scale = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "12px system-ui, sans-serif";
    const box = {
      left: MARGIN.left, top: MARGIN.top,
      width: Math.max(1, width - MARGIN.left - MARGIN.right), height: Math.max(1, height - MARGIN.top - MARGIN.bottom),
    };
    return { pen, box };
  }

  function ticks(n, most) {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((size) => n / size <= most) ?? 10000;
    return Array.from({ length: Math.floor(n / step) }, (_, i) => (i + 1) * step);
  }

  function text(pen, words, x, y, align, baseline) {
    pen.fillStyle = theme("soft");
    pen.textAlign = align;
    pen.textBaseline = baseline;
    pen.fillText(words, x, y);
  }

  function vertical(pen, words, x, y) {
    pen.save();
    pen.translate(x, y);
    pen.rotate(-Math.PI / 2);
    text(pen, words, 0, 0, "center", "top");
    pen.restore();
  }

  function drawPlot() {
    const { pen, box } = context(plot), n = current.sequence.length;
    const x = (residue) => box.left + ((residue - 0.5) / n) * box.width, y = (value) => box.top + (1 - value / 100) * box.height;
    let above = 100;
    for (const [least, colour] of data.confidence) {
      pen.fillStyle = colour + (dark.matches ? "40" : "2b");
      pen.fillRect(box.left, y(above), box.width, y(least) - y(above));
      text(pen, String(above), box.left - 6, y(above), "right", "middle");
      above = least;
    }
    ranges.forEach(([first, last], place) => {
      pen.fillStyle = SELECTED[place % SELECTED.length] + "55";
      pen.fillRect(x(first - 0.5), box.top, Math.max(2, x(last + 0.5) - x(first - 0.5)), box.height);
    });
    drawBorders(pen, box, false);
    pen.strokeStyle = theme("ink");
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    pen.beginPath();
    current.plddt.forEach((value, i) => pen.lineTo(x(i + 1), y(value)));
    pen.stroke();
    for (const tick of ticks(n, box.width / 60)) text(pen, String(tick), x(tick), box.top + box.height + 5, "center", "top");
    text(pen, "residue", box.left + box.width / 2, box.top + box.height + 20, "center", "top");
    vertical(pen, "pLDDT", 1, box.top + box.height / 2);
    const mean = current.plddt.reduce((a, b) => a + b, 0) / n;
    plot.setAttribute("aria-label", `pLDDT of ${n} residues, mean ${mean.toFixed(1)}. Drag to select residues.`);
  }

  function mapPicture(one) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = one.side;
    const pen = canvas.getContext("2d"), picture = pen.createImageData(one.side, one.side);
    const palette = Array.from({ length: 256 }, (_, code) => (code === 255 ? [128, 138, 148] : parts(ramp(one.colours, code / 254))));
    one.codes.forEach((code, i) => picture.data.set([...palette[code], 255], 4 * i));
    pen.putImageData(picture, 0, 0);
    return canvas;
  }

  function drawMap() {
    const one = shownMap();
    if (!one) return;
    const { pen, box } = context(map), n = current.sequence.length;
    const x = (edge) => box.left + (edge / n) * box.width, y = (edge) => box.top + (edge / n) * box.height;
    one.picture ??= mapPicture(one);
    pen.imageSmoothingEnabled = false;
    // the last block may be a part of one
    const covered = (one.side * one.block) / n;
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top, box.width, box.height);
    pen.clip();
    pen.drawImage(one.picture, box.left, box.top, box.width * covered, box.height * covered);
    pen.restore();
    drawBorders(pen, box, true);
    pen.strokeStyle = theme("edge");
    pen.strokeRect(box.left, box.top, box.width, box.height);
    for (const tick of ticks(n, box.width / 60)) {
      text(pen, String(tick), x(tick - 0.5), box.top + box.height + 5, "center", "top");
      text(pen, String(tick), box.left - 6, y(tick - 0.5), "right", "middle");
    }
    text(pen, one.columns, box.left + box.width / 2, box.top + box.height + 20, "center", "top");
    vertical(pen, one.rows, 1, box.top + box.height / 2);
    ranges.forEach(([first, last], place) => {
      pen.fillStyle = SELECTED[place % SELECTED.length];
      pen.fillRect(x(first - 1), box.top + box.height - 4, Math.max(2, x(last) - x(first - 1)), 4);
      pen.fillRect(box.left, y(first - 1), 4, Math.max(2, y(last) - y(first - 1)));
    });
    if (ranges.length) {
      const [columns, rows] = [ranges[0], ranges[1] ?? ranges[0]];
      pen.strokeStyle = SELECTED[0];
      pen.lineWidth = 2;
      pen.strokeRect(x(columns[0] - 1), y(rows[0] - 1), x(columns[1]) - x(columns[0] - 1), y(rows[1]) - y(rows[0] - 1));
    }
    element("scale").style.background = `linear-gradient(to right, ${one.colours.join(", ")})`;
    element("maximum").textContent = `≥ ${one.maximum} ${one.unit}`;
    map.setAttribute("aria-label", `Map of ${one.name} between ${n} residues. Drag to select two ranges of residues.`);
  }

  const shownMap = () => current.maps[element("map-name").selectedIndex];

  function meanOfMap(one, columns, rows) {
    let sum = 0, count = 0;
    const place = (residue) => Math.floor((residue - 1) / one.block);
    for (let row = place(rows[0]); row <= place(rows[1]); row++) {
      for (let column = place(columns[0]); column <= place(columns[1]); column++) {
        const code = one.codes[row * one.side + column];
        if (code < 255) [sum, count] = [sum + code, count + 1];
      }
    }
    return count ? ((sum / count / 254) * one.maximum).toFixed(1) : null;
  }

  // ---- words and selection

  // "12 of chain B" between two texts; residues count through all chains of a complex. Nothing for a single chain.
  function placeInChain(residue, before, after = "") {
    if (current.chains.length < 2) return "";
    const starts = [0, ...borders()], chain = starts.findLastIndex((start) => start < residue);
    return `${before}${residue - starts[chain]} of chain ${current.chains[chain][0]}${after}`;
  }
  const residueText = (residue) => {
    const letter = current.sequence[residue - 1], plddt = current.plddt[residue - 1];
    return `Residue ${residue} (${data.residue_names[letter] ?? letter}${placeInChain(residue, ", ")}): pLDDT ${plddt.toFixed(1)}, ${confidence(plddt)[2]}.`;
  };
  const pairText = (column, row) => {
    const one = shownMap(), value = meanOfMap(one, [column, column], [row, row]);
    const [x, y] = [column, row].map((residue) => `${residue}${placeInChain(residue, " (", ")")}`);
    return `${one.columns} ${x}, ${one.rows} ${y}: ${one.name} ${value === null ? "unknown" : `${value} ${one.unit}`}.`;
  };
  const rangeText = ([first, last]) => (first === last ? `${first}` : `${first}-${last}`);

  function showSelection() {
    if (!ranges.length) {
      readout.textContent = "Drag over the plot or the map, click a residue of the structure, or enter numbers, to select residues.";
      return;
    }
    const texts = ranges.map((range) => {
      const part = current.plddt.slice(range[0] - 1, range[1]);
      return `${rangeText(range)} (mean pLDDT ${(part.reduce((a, b) => a + b, 0) / part.length).toFixed(1)})`;
    });
    const one = shownMap(), value = one && meanOfMap(one, ranges[0], ranges[1] ?? ranges[0]);
    readout.textContent = `Selected: ${texts.join(", ")}.` + (value ? ` Mean ${one.name}: ${value} ${one.unit}.` : "");
  }

  function select(chosen) {
    const n = current.sequence.length;
    ranges = chosen.map((range) => [...range].sort((a, b) => a - b)).filter(([a, b]) => a >= 1 && b <= n);
    element("selection").value = ranges.map(rangeText).join(", ");
    element("selection").setCustomValidity("");
    drawPlot();
    drawMap();
    drawStyle();
    showSelection();
  }

  function selectTyped() {
    const field = element("selection"), n = current.sequence.length;
    const chosen = field.value.split(",").map((part) => part.trim()).filter(Boolean).map((part) => {
      const found = /^(\d+)(?:\s*[-–]\s*(\d+))?$/.exec(part);
      return found && [Number(found[1]), Number(found[2] ?? found[1])];
    });
    const bad = chosen.some((range) => !range || Math.min(...range) < 1 || Math.max(...range) > n);
    field.setCustomValidity(bad ? `Residue numbers from 1 to ${n}, such as 12-45, 80` : "");
    if (field.reportValidity()) select(chosen);
  }

  // Selection by dragging; `at` gives the residue below the pointer on each axis of the canvas.
  function selectable(canvas, at, toRanges, hoverText) {
    const residue = (share) => Math.min(current.sequence.length, Math.max(1, Math.ceil(share * current.sequence.length)));
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return at(
        residue((event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right)),
        residue((event.clientY - box.top - MARGIN.top) / (box.height - MARGIN.top - MARGIN.bottom)),
      );
    };
    canvas.addEventListener("pointerdown", (event) => {
      drag = place(event);
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) {
        ranges = toRanges(drag, place(event));
        drawPlot();
        drawMap();
      } else readout.textContent = hoverText(...place(event));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag) select(toRanges(drag, place(event)));
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("pointerleave", () => { if (!drag) showSelection(); });
  }

  const sorted = (a, b) => [Math.min(a, b), Math.max(a, b)];
  // ---- one structure at a time

  const chosenIndex = () => Number(document.querySelector('input[name="structure"]:checked').value);

  async function show(index) {
    const chosen = data.structures[index];
    const models = {
      prediction: await modelText(chosen.sequence, chosen.chains, chosen.prediction),
      truth: chosen.truth && await modelText(chosen.sequence, chosen.chains, chosen.truth),
    };
    const maps = await Promise.all(chosen.maps.map(async (one) => ({ ...one, codes: await unpack(one.data) })));
    if (chosenIndex() !== index) return; // another was chosen meanwhile
    current = { ...chosen, models, maps };
    element("name").textContent = chosen.name;
    element("links").replaceChildren(...Object.entries(chosen.links).map(([name, file]) =>
      Object.assign(document.createElement("a"), { textContent: name, href: file, download: "" })));
    element("truth-label").hidden = !chosen.truth;
    element("map-panel").hidden = !maps.length;
    element("map-panel").parentElement.classList.toggle("no-map", !maps.length);
    element("map-name").replaceChildren(...maps.map((one) => new Option(one.name)));
    ranges = [];
    drawModels();
    select([]);
  }

  function redraw() {
    if (!current) return;
    drawPlot();
    drawMap();
    if (viewer) viewer.resize();
  }

  // #structure-3 in the address chooses a structure, so that tables can link to it
  function chooseByAddress() {
    document.getElementById(location.hash.slice(1))?.querySelector('input[name="structure"]')?.click();
  }

  function listen() {
    selectable(plot, (x) => [x], ([from], [to]) => [sorted(from, to)], residueText);
    selectable(map, (x, y) => [x, y], (from, to) => {
      const columns = sorted(from[0], to[0]), rows = sorted(from[1], to[1]);
      return String(columns) === String(rows) ? [columns] : [columns, rows];
    }, pairText);
    for (const input of document.querySelectorAll('input[name="structure"]')) {
      input.addEventListener("change", () => show(Number(input.value)));
    }
    element("style").addEventListener("change", drawStyle);
    element("truth").addEventListener("change", drawStyle);
    element("map-name").addEventListener("change", () => { drawMap(); showSelection(); });
    element("clear").addEventListener("click", () => select([]));
    element("form").addEventListener("submit", (event) => { event.preventDefault(); selectTyped(); });
    element("selection").addEventListener("input", () => element("selection").setCustomValidity(""));
    element("centre").addEventListener("click", () => {
      if (!viewer) return;
      const resi = ranges.flatMap(([a, b]) => Array.from({ length: b - a + 1 }, (_, i) => a + i));
      if (resi.length) zoomTo({ model: current.predictionModel, resi }, 0.8);
      else zoomTo({}, current.truth ? 1 : 1.2);
    });
    element("save").addEventListener("click", () => {
      if (!viewer) return;
      Object.assign(document.createElement("a"), { href: viewer.pngURI(), download: `${current.name}.png` }).click();
    });
    dark.addEventListener("change", () => {
      if (viewer) viewer.setBackgroundColor(theme("paper"));
      redraw();
      drawStyle();
    });
    new ResizeObserver(redraw).observe(stage);
    addEventListener("hashchange", chooseByAddress);
  }

  if (typeof DecompressionStream === "undefined") {
    notice("This browser is too old for the view: it has no DecompressionStream (all browsers since 2023 have it).");
    return;
  }
  makeViewer();
  show(chosenIndex()).then(() => {
    listen();
    chooseByAddress();
  });
})();
