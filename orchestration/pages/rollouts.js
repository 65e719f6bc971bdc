"use strict";
// The rollout viewer. Texts come from models and environments: they only ever become text nodes, never markup.
(() => {
  const root = document.getElementById("rollouts");
  const embedded = JSON.parse(document.getElementById("rollouts-data").textContent);
  const groups = new Map(embedded.groups.map((group) => [group.file, group]));
  const opened = new Map(); // name -> numbers of the trajectories whose details are open
  let names = embedded.files;
  let current = null;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const number = (value) => (Math.round(value * 1000) / 1000).toString();

  // --- filters -------------------------------------------------------------------------------------------------------

  const option = (value) => make("option", { value, textContent: value || "any" });
  const field = {
    verdict: make("select", {}, ...["", "solved", "wrong", "unparsable", "failed"].map(option)),
    sampler: make("select", {}, option("")),
    least: make("input", { type: "number", step: "any", placeholder: "any" }),
    first: make("input", { type: "number", min: "0", placeholder: "any" }),
    last: make("input", { type: "number", min: "0", placeholder: "any" }),
    colour: make("select", {}, ...["probability", "advantage", "none"].map(option)),
  };
  const bar = make("div", { className: "filters card" });
  for (const [key, words] of [
    ["verdict", "verdict"], ["least", "reward at least"], ["first", "from update"], ["last", "to update"],
    ["sampler", "sampler"], ["colour", "colour tokens by"],
  ]) {
    field[key].addEventListener("input", refresh);
    bar.append(make("label", {}, words, field[key]));
  }
  const list = make("div", { className: "list card" });
  const tree = make("div", { className: "tree card" });
  root.append(bar, list, tree);

  const bound = (input, otherwise) => (input.value === "" ? otherwise : Number(input.value));
  const wanted = (trajectory) =>
    trajectory.kind !== "sketches" &&
    (field.verdict.value === "" || trajectory.verdict === field.verdict.value) &&
    trajectory.reward >= bound(field.least, -Infinity);
  const updateOf = (name) => Number(name.match(/\d+/)[0]);
  const inRange = (name) => updateOf(name) >= bound(field.first, -Infinity) && updateOf(name) <= bound(field.last, Infinity);
  // Of a group that has not been fetched only its update is known: it stays in the list.
  const listed = (name) => {
    const group = groups.get(name);
    return inRange(name) && (!group || ((field.sampler.value === "" || group.sampler === field.sampler.value) &&
      group.trajectories.some(wanted)));
  };

  // --- the list ------------------------------------------------------------------------------------------------------

  function refresh() {
    fillList();
    show(current);
  }

  function fillList() {
    const samplers = new Set([...groups.values()].map((group) => group.sampler));
    for (const name of samplers) {
      if (![...field.sampler.options].some((one) => one.value === name)) field.sampler.append(option(name));
    }
    const shown = names.filter(listed);
    list.replaceChildren(...shown.map(entry));
    if (!shown.length) list.append(make("div", { className: "dim", textContent: names.length ? "none fits" : "no samples yet" }));
    if (!shown.includes(current)) current = shown[0] ?? null;
  }

  function entry(name) {
    const group = groups.get(name);
    const episodes = group ? group.trajectories.filter((one) => one.kind !== "sketches") : [];
    const solved = episodes.filter((one) => one.verdict === "solved").length;
    const about = group ? `ticket ${group.ticket}, ${solved} of ${episodes.length} solved` : "";
    const button = make("button", { type: "button" }, `update ${updateOf(name)}`, make("small", { textContent: about }));
    button.setAttribute("aria-current", String(name === current));
    button.addEventListener("click", () => { current = name; refresh(); });
    return button;
  }

  // --- one group -----------------------------------------------------------------------------------------------------

  async function show(name) {
    for (const button of list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.firstChild.data === `update ${name && updateOf(name)}`));
    }
    if (name === null) return tree.replaceChildren();
    if (!groups.has(name)) {
      if (!embedded.live) return;
      const problem = await fetched(name);
      if (name !== current) return; // another one was chosen meanwhile
      if (problem) return tree.replaceChildren(make("p", { className: "bad", textContent: problem }));
      return refresh();
    }
    const group = groups.get(name);
    const head = make("p", { className: "dim" },
      `${group.env}, sampler ${group.sampler}, ticket ${group.ticket}, seed ${group.seed}` +
      `${group.attempt ? `, attempt ${group.attempt + 1}` : ""}, policy ${group.version}`);
    tree.replaceChildren(head, branchesOf(group));
  }

  // What went wrong, or null with the group in `groups`.
  async function fetched(name) {
    try {
      const answer = await fetch(`rollouts/${name}`);
      const body = await answer.json();
      if (!answer.ok) return body.error;
      groups.set(name, body);
      return null;
    } catch {
      return "the viewer does not answer: was it stopped?";
    }
  }

  // Sketches hold their solutions; a trajectory holds what was sampled from one of its states.
  function branchesOf(group) {
    const most = Math.max(1e-6, ...group.trajectories.flatMap((one) => one.segments.map((s) => Math.abs(s.advantage ?? 0))));
    if (!opened.has(group.file)) opened.set(group.file, new Set([0, 1]));
    const open = opened.get(group.file);
    const children = new Map();
    const put = (key, node) => children.set(key, [...(children.get(key) ?? []), node]);
    // A list is one trajectory or one a sketch; those that were drafted again count in neither.
    const sketches = group.trajectories.flatMap((one, index) => one.kind !== "sketches" || one.verdict === "unparsable" ? [] :
      one.segments.filter((segment) => segment.role === "sketch").map((_, place) => `${index}/${place}`));
    group.trajectories.forEach((one, index) => {
      if (one.parent !== null) put(`${one.parent}`, index);
      else put(sketches[one.sketch] ?? "", index);
    });
    const nodes = (key) => {
      const found = (children.get(key) ?? []).map((index) => node(index));
      return found.length ? make("ul", {}, ...found) : null;
    };
    const node = (index) => {
      const one = group.trajectories[index];
      const item = make("li", { className: wanted(one) || one.kind === "sketches" ? "" : "faded" });
      const body = one.kind === "sketches" ? sketchList(index) : [...turns(one, most), ...pivotsOf(index)];
      const details = make("details", { open: open.has(index) }, heading(one, index), ...body);
      details.addEventListener("toggle", () => (details.open ? open.add(index) : open.delete(index)));
      item.append(details, ...[nodes(`${index}`)].filter(Boolean));
      return item;
    };
    const sketchList = (index) => {
      let place = -1;
      return group.trajectories[index].segments.flatMap((segment) => {
        const turn = turnOf(segment, most);
        if (segment.role !== "sketch") return [turn];
        place += 1;
        const guided = nodes(`${index}/${place}`);
        return guided ? [turn, guided] : [turn];
      });
    };
    const pivotsOf = (index) => group.pivots.filter((pivot) => pivot.parent === index).map((pivot) =>
      make("p", { className: "pivot" }, `pivot before segment ${pivot.pivot + 1}, at ${Math.round(100 * pivot.depth)} % of its tokens: ` +
        `${pivot.solved} of ${pivot.branches} branches solved, gain ${number(pivot.gain)}`));
    return nodes("") ?? make("p", { className: "dim", textContent: "nothing was sampled" });
  }

  function heading(one, index) {
    const about = [
      one.kind === "sketches" ? null : `reward ${number(one.reward)}`,
      one.answer ? `answer ${one.answer}` : null,
      one.sketch !== null ? `sketch ${one.sketch + 1}` : null,
      one.parent !== null ? `from ${one.parent + 1}, segment ${one.pivot + 1}` : null,
      one.cause || null,
    ].filter(Boolean).join(", ");
    return make("summary", {}, `${index + 1}. ${one.kind} `,
      one.kind === "sketches" ? null : make("span", { className: `verdict ${one.verdict}`, textContent: one.verdict }),
      make("span", { className: "dim", textContent: ` ${about}` }));
  }

  const turns = (one, most) => one.segments.map((segment) => turnOf(segment, most));

  function turnOf(segment, most) {
    const worth = segment.advantage === null ? "" : `, advantage ${number(segment.advantage)}`;
    const cut = segment.ended ? "" : ", cut at its token limit";
    const turn = make("div", { className: "turn" }, make("b", { textContent: `${segment.role}${worth}${cut}` }));
    if (!segment.logprobs.length) turn.append(segment.texts.join(""));
    segment.logprobs.forEach((logprob, i) => {
      const token = make("span", { textContent: segment.texts[i], title: `probability ${number(Math.exp(logprob))}` });
      token.style.background = colourOf(logprob, segment.advantage, most);
      turn.append(token);
    });
    return turn;
  }

  function colourOf(logprob, advantage, most) {
    if (field.colour.value === "probability") return `rgb(240 140 40 / ${number(0.75 * (1 - Math.exp(logprob)))})`;
    if (field.colour.value === "none" || !advantage) return "none";
    return `rgb(${advantage > 0 ? "40 170 90" : "210 50 50"} / ${number(0.6 * Math.min(1, Math.abs(advantage) / most))})`;
  }

  // --- live ----------------------------------------------------------------------------------------------------------

  async function look() {
    try {
      const found = await (await fetch("rollouts")).json();
      if (found.files.join() !== names.join()) {
        names = found.files;
        const before = current;
        fillList();
        if (current !== before) show(current); // else what is being read stays as it is
      }
    } catch { /* the viewer was stopped: what is here stays */ }
    setTimeout(look, 3000);
  }

  refresh();
  if (embedded.live) look();
})();
