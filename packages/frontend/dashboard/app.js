// SPDX-License-Identifier: Apache-2.0
// Asks the frontend once a second how the cluster is and draws it. Nothing of what comes is ever read as HTML.

const POLL_MS = 1000;
/** An answer that takes longer counts as none. */
const TIMEOUT_MS = 5000;
const HISTORY_POINTS = 300;
/** What a curve spans: a minute at first, then all that is known. */
const MIN_SPAN_MS = 60_000;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
	const made = document.createElement(name);
	for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
	made.append(...children.filter((child) => child !== undefined));
	return made;
}

function svg(name, attributes, ...children) {
	const made = document.createElementNS(SVG, name);
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
	made.append(...children);
	return made;
}

// Numbers as people read them.

const UNKNOWN = "–";

function count(value) {
	if (value === null || value === undefined) return UNKNOWN;
	if (value >= 1e9) return `${(value / 1e9).toFixed(1)} G`;
	if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
	if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
	if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
	return value.toFixed(value >= 10 ? 1 : 2);
}

function duration(seconds) {
	if (seconds === null || seconds === undefined) return [UNKNOWN, ""];
	if (seconds >= 100) return [seconds.toFixed(0), "s"];
	if (seconds >= 1) return [seconds.toFixed(1), "s"];
	const ms = seconds * 1000;
	return [ms >= 100 ? ms.toFixed(0) : ms.toFixed(1), "ms"];
}

const time = (seconds) => duration(seconds).join(" ").trim();
const percent = (share) => (share === null || share === undefined ? UNKNOWN : `${(share * 100).toFixed(0)} %`);

function age(seconds) {
	if (seconds === null || seconds === undefined) return UNKNOWN;
	if (seconds < 60) return `${Math.floor(seconds)} s`;
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
	if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
	return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function sum(values) {
	if (values.length === 0) return 0;
	const known = values.filter((value) => value !== null && value !== undefined);
	return known.length === 0 ? null : known.reduce((total, value) => total + value, 0);
}

// Tiles.

let history = [];

function curve(key) {
	const now = history.at(-1)?.at ?? 0;
	const span = Math.max(MIN_SPAN_MS, now - (history[0]?.at ?? now));
	const points = history.map((point) => [point.at, point[key]]);
	const most = Math.max(...points.map(([, value]) => value ?? 0), 0) || 1;
	const runs = [];
	let run = [];
	for (const [at, value] of points) {
		if (value === null) {
			if (run.length > 0) runs.push(run);
			run = [];
		} else {
			run.push([(300 * (at - now + span)) / span, 40 - (36 * value) / most]);
		}
	}
	if (run.length > 0) runs.push(run);
	const drawing = svg("svg", { viewBox: "0 0 300 42", preserveAspectRatio: "none", "aria-hidden": "true" });
	for (const part of runs) {
		const path = part.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");
		const [from, to] = [part[0][0], part.at(-1)[0]];
		drawing.append(svg("path", { class: "area", d: `M${from.toFixed(1)},42L${path}L${to.toFixed(1)},42Z` }));
		drawing.append(svg("path", { class: "curve", d: `M${path}` }));
	}
	return drawing;
}

function tile(title, [value, unit], key, detail) {
	return element(
		"div",
		{ class: "tile" },
		element("p", { class: "quiet" }, title),
		element("p", { class: "value" }, value, unit === "" ? undefined : element("small", {}, unit)),
		element("p", { class: "quiet" }, detail),
		curve(key),
	);
}

function drawTiles({ models }) {
	const tokens = sum(models.map((model) => model.outputTokensPerSecond));
	const requests = sum(models.map((model) => model.requestsPerSecond));
	const active = sum(models.map((model) => model.active));
	const queued = sum(models.map((model) => model.queued));
	const shown = history.filter((point) => point.timeToFirstToken !== null).at(-1)?.timeToFirstToken;
	const recent = history.slice(-10).some((point) => point.timeToFirstToken !== null);
	const total = sum(models.map((model) => model.requestsTotal));
	$("tiles").replaceChildren(
		tile(
			"Tokens generated",
			[count(tokens), "per second"],
			"outputTokensPerSecond",
			`${count(sum(models.map((model) => model.outputTokensTotal)))} since start`,
		),
		tile("Requests", [count(requests), "per second"], "requestsPerSecond", `${count(total)} since start`),
		tile("Time to first token", duration(recent ? shown : null), "timeToFirstToken", "median"),
		tile("Under way", [count(active), "requests"], "active", `${count(queued)} wait for the first token`),
	);
}

// Models.

function fact(name, value) {
	return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}

function workersOf(model) {
	const parts = Object.entries(model.workers).map(([role, { ready, all }]) =>
		ready === all ? `${all} ${role}` : `${ready} of ${all} ${role}`,
	);
	return parts.length === 0 ? "no workers" : parts.join(", ");
}

function modelCard(model) {
	const context = model.contextLength > 0 ? ` · ${count(model.contextLength)} tokens of context` : "";
	const up = model.ready ?? Object.values(model.workers).some(({ ready }) => ready > 0);
	return element(
		"article",
		{ class: "card" },
		element(
			"div",
			{ class: "title" },
			element("h3", {}, model.name),
			element("span", { class: `state ${up ? "good" : "bad"}` }, up ? "ready" : "not ready"),
		),
		element("p", { class: "quiet" }, `${workersOf(model)}${context}`),
		element(
			"dl",
			{ class: "facts" },
			fact("Requests / s", count(model.requestsPerSecond)),
			fact("Tokens out / s", count(model.outputTokensPerSecond)),
			fact("Tokens in / s", count(model.inputTokensPerSecond)),
			fact("TTFT p50", time(model.timeToFirstToken.p50)),
			fact("TTFT p99", time(model.timeToFirstToken.p99)),
			fact("Between tokens", time(model.interTokenLatency.p50)),
			fact("Under way", count(model.active)),
			fact("From cache", percent(model.cacheHitRate)),
			fact("Errors", percent(model.errorShare)),
		),
	);
}

// Workers.

const STATES = {
	ready: ["good", "ready", ""],
	busy: ["warn", "busy", "too full for more requests"],
	failing: ["bad", "failing", "left aside after a failure"],
	starting: ["warn", "starting", "the frontend loads its model's files"],
	refused: ["bad", "refused", "its card differs from that of the others"],
	unreachable: ["bad", "unreachable", "its metrics do not answer"],
	leaving: ["warn", "leaving", "takes no more requests"],
	gone: ["bad", "gone", ""],
};

function meter(share) {
	if (share === null) return UNKNOWN;
	const level = share >= 0.95 ? " bad" : share >= 0.8 ? " warn" : "";
	const width = Math.round(72 * Math.min(1, share));
	return element(
		"span",
		{ class: `meter${level}` },
		svg(
			"svg",
			{ viewBox: "0 0 72 6", "aria-hidden": "true" },
			svg("rect", { width: 72, height: 6, rx: 3 }),
			svg("rect", { width, height: 6, rx: 3 }),
		),
		element("span", {}, percent(share)),
	);
}

function stateCell(worker) {
	const [level, text, why] = STATES[worker.state] ?? ["", worker.state, ""];
	const note = worker.state === "gone" ? `left ${age(worker.goneSeconds)} ago` : why;
	return [
		element("span", { class: `state ${level}` }, text),
		note === "" ? undefined : element("span", { class: "quiet" }, note),
	];
}

const running = ({ running, slots }) =>
	running === null ? UNKNOWN : slots ? `${count(running)} of ${count(slots)}` : count(running);

const COLUMNS = [
	["Worker", "", (w) => [element("span", { class: "id", title: `${w.id} at ${w.address ?? "?"}` }, w.hex), place(w)]],
	["Role", "", (w) => [element("span", { class: `role ${w.role}` }, w.role)]],
	["State", "", stateCell],
	["Running", "number", (w) => [running(w)]],
	["Waiting", "number", (w) => [count(w.waiting)]],
	["KV cache", "number", (w) => [meter(w.kvUsage)]],
	["Cache hits", "number", (w) => [percent(w.cacheHitRate)]],
	["Tokens / s", "number", (w) => [count(w.tokensPerSecond)]],
	["Last TTFT", "number", (w) => [time(w.lastTimeToFirstToken)]],
	["Up", "number", (w) => [age(w.uptimeSeconds)]],
];

function place(worker) {
	const device = worker.device === null ? "" : ` · ${worker.device}`;
	return element("span", { class: "quiet" }, `${worker.namespace}/${worker.component}${device}`);
}

function workerRow(worker) {
	return element(
		"tr",
		worker.state === "gone" ? { class: "gone" } : {},
		...COLUMNS.map(([label, kind, cell]) => {
			const content = cell(worker);
			const known = content[0] === UNKNOWN ? " unknown" : "";
			return element("td", { class: kind + known, "data-label": label }, ...content);
		}),
	);
}

function workerTables({ models, workers }) {
	if (workers.length === 0) {
		return [
			element(
				"div",
				{ class: "notice" },
				"No workers yet. Start one with the same discovery settings as this frontend:",
				element("pre", {}, "bin/dynamo worker --model smollm2-135m"),
			),
		];
	}
	const names = [...new Set(workers.map(({ model }) => model))];
	return names.map((name) =>
		element(
			"div",
			{},
			names.length > 1 || models.length > 1 ? element("h3", { class: "heading" }, name) : undefined,
			element(
				"div",
				{ class: "table" },
				element(
					"table",
					{},
					element(
						"thead",
						{},
						element("tr", {}, ...COLUMNS.map(([label, kind]) => element("th", { class: kind, scope: "col" }, label))),
					),
					element("tbody", {}, ...workers.filter(({ model }) => model === name).map(workerRow)),
				),
			),
		),
	);
}

function draw(view) {
	const { models, workers } = view;
	drawTiles(view);
	$("models").replaceChildren(
		...(models.length > 0
			? models.map(modelCard)
			: [element("div", { class: "notice" }, "No models: they come with the workers that serve them.")]),
	);
	$("workers").replaceChildren(...workerTables(view));
	const there = workers.filter(({ state }) => state !== "gone");
	const good = there.filter(({ state }) => state === "ready" || state === "busy");
	$("worker-count").textContent = there.length === 0 ? "" : `${good.length} of ${there.length} take requests`;
	$("summary").textContent =
		`${plural(models.length, "model")}, ${plural(there.length, "worker")} · up ${age(view.uptimeSeconds)}`;
	$("window").textContent =
		view.windowSeconds > 0 ? `Rates and latencies of the last ${view.windowSeconds.toFixed(0)} seconds.` : "";
	const troubled = workers.some(({ state }) => (STATES[state] ?? ["bad"])[0] === "bad");
	const dark = models.some(({ ready }) => ready === false);
	if (there.length === 0) status("no workers", "warn");
	else if (dark) status("a model is not ready", "bad");
	else if (troubled) status("workers need a look", "warn");
	else status("all well", "good");
	document.querySelector("main").hidden = false;
}

function status(text, level) {
	const pill = $("status");
	if (pill.textContent !== text) pill.textContent = text;
	pill.className = `pill ${level}`;
}

async function poll() {
	try {
		const since = history.at(-1)?.at ?? 0;
		const answer = await fetch(`dashboard/data?since=${since}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
		if (!answer.ok) throw new Error(`status ${answer.status}`);
		const view = await answer.json();
		history = [...history, ...view.history].slice(-HISTORY_POINTS);
		document.body.classList.remove("stale");
		draw(view);
	} catch {
		document.body.classList.add("stale");
		status("the frontend does not answer", "bad");
	}
}

async function run() {
	for (;;) {
		// A page that nobody sees asks for nothing.
		if (document.hidden) {
			await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
		}
		await poll();
		await new Promise((resolve) => setTimeout(resolve, POLL_MS));
	}
}

run();
