// SPDX-License-Identifier: Apache-2.0
// A cluster as lines of text: what `dynamo top` shows.
import type { ClusterSnapshot, ModelView, WorkerState, WorkerView } from "@dynamo-ts/frontend/internal";

export interface Screen {
	/** Columns; lines are cut there. */
	readonly columns: number;
	/** Rows; what does not fit is counted in the last line. */
	readonly rows: number;
	/** Whether colours may be used. */
	readonly colours: boolean;
}

const UNKNOWN = "-";
const CODES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;
type Style = keyof typeof CODES;

/** A piece of a line: its text, and how it looks. */
type Cell = readonly [text: string, style?: Style];

/** One line per model and worker. */
export function formatCluster(view: ClusterSnapshot, screen: Screen): string[] {
	const paint = (cell: Cell, width: number, right: boolean): string => {
		const [text, style] = cell;
		const padded = right ? text.padStart(width) : text.padEnd(width);
		return style === undefined || !screen.colours ? padded : `\x1b[${CODES[style]}m${padded}\x1b[0m`;
	};
	const lines = [...title(view).map((cells) => cells.map((cell) => paint(cell, 0, false)).join("")), ""];
	const models = table(MODEL_COLUMNS, view.models);
	const workers = table(WORKER_COLUMNS, view.workers);
	for (const [rows, columns, empty] of [
		[models, MODEL_COLUMNS, "no models"],
		[workers, WORKER_COLUMNS, "no workers: start one with `dynamo worker`, with the same discovery settings"],
	] as const) {
		if (rows.length === 1) lines.push(paint([empty, "dim"], 0, false));
		else lines.push(...draw(rows, columns as readonly Column<never>[], screen.columns, paint));
		lines.push("");
	}
	lines.pop();
	if (lines.length <= screen.rows) return lines;
	const shown = lines.slice(0, Math.max(0, screen.rows - 1));
	return [...shown, paint([`... and ${lines.length - shown.length} more lines`, "dim"], 0, false)];
}

function title(view: ClusterSnapshot): Cell[][] {
	const there = view.workers.filter(({ state }) => state !== "gone");
	const usable = there.filter(({ state }) => state === "ready" || state === "busy").length;
	const parts: Cell[] = [
		["dynamo", "bold"],
		[`  ${new Date(view.at).toISOString().slice(11, 19)} UTC`, "dim"],
		[`  ${plural(view.models.length, "model")}, `],
		[
			usable === there.length
				? plural(there.length, "worker")
				: `${usable} of ${plural(there.length, "worker")} usable`,
		],
	];
	if (view.uptimeSeconds !== null) parts.push([`  frontend up ${age(view.uptimeSeconds)}`]);
	if (!view.hasFrontend) parts.push(["  no frontend's numbers", "yellow"]);
	if (view.windowSeconds > 0) parts.push([`  rates of the last ${view.windowSeconds.toFixed(0)} s`, "dim"]);
	return [parts];
}

interface Column<T> {
	readonly title: string;
	readonly right?: boolean;
	readonly cell: (row: T) => Cell;
}

const MODEL_COLUMNS: readonly Column<ModelView>[] = [
	{ title: "MODEL", cell: ({ name }) => [name, "bold"] },
	{ title: "STATE", cell: readiness },
	{ title: "WORKERS", cell: (model) => [workersOf(model)] },
	{ title: "REQ/S", right: true, cell: (model) => [count(model.requestsPerSecond)] },
	{ title: "TOK/S", right: true, cell: (model) => [count(model.outputTokensPerSecond)] },
	{ title: "IN TOK/S", right: true, cell: (model) => [count(model.inputTokensPerSecond)] },
	{ title: "ACTIVE", right: true, cell: (model) => [count(model.active)] },
	{ title: "QUEUED", right: true, cell: (model) => [count(model.queued)] },
	{ title: "TTFT P50", right: true, cell: (model) => [seconds(model.timeToFirstToken.p50)] },
	{ title: "P99", right: true, cell: (model) => [seconds(model.timeToFirstToken.p99)] },
	{ title: "ITL P50", right: true, cell: (model) => [seconds(model.interTokenLatency.p50)] },
	{ title: "HITS", right: true, cell: (model) => [percent(model.cacheHitRate)] },
	{
		title: "ERRORS",
		right: true,
		cell: ({ errorShare }) => [percent(errorShare), (errorShare ?? 0) > 0 ? "red" : undefined],
	},
];

const STATE_STYLES: Readonly<Record<WorkerState, Style>> = {
	ready: "green",
	busy: "yellow",
	starting: "yellow",
	leaving: "yellow",
	failing: "red",
	refused: "red",
	unreachable: "red",
	gone: "red",
};

const WORKER_COLUMNS: readonly Column<WorkerView>[] = [
	{ title: "WORKER", cell: ({ hex }) => [hex] },
	{ title: "MODEL", cell: ({ model }) => [model] },
	{ title: "ROLE", cell: ({ role }) => [role, "cyan"] },
	{
		title: "STATE",
		cell: ({ state, goneSeconds }) => [goneSeconds === null ? state : `gone ${age(goneSeconds)}`, STATE_STYLES[state]],
	},
	{ title: "RUN", right: true, cell: (worker) => [count(worker.running)] },
	{ title: "WAIT", right: true, cell: (worker) => [count(worker.waiting)] },
	{ title: "SLOTS", right: true, cell: (worker) => [count(worker.slots)] },
	{ title: "KV", right: true, cell: ({ kvUsage }) => [percent(kvUsage), level(kvUsage)] },
	{ title: "HITS", right: true, cell: (worker) => [percent(worker.cacheHitRate)] },
	{ title: "TOK/S", right: true, cell: (worker) => [count(worker.tokensPerSecond)] },
	{ title: "TTFT", right: true, cell: (worker) => [seconds(worker.lastTimeToFirstToken)] },
	{ title: "UP", right: true, cell: (worker) => [worker.uptimeSeconds === null ? UNKNOWN : age(worker.uptimeSeconds)] },
	{ title: "ADDRESS", cell: (worker) => [worker.address ?? UNKNOWN, "dim"] },
];

/** The heading, then a row of cells for each. */
function table<T>(columns: readonly Column<T>[], rows: readonly T[]): Cell[][] {
	return [columns.map(({ title }): Cell => [title, "dim"]), ...rows.map((row) => columns.map(({ cell }) => cell(row)))];
}

function draw(
	rows: readonly (readonly Cell[])[],
	columns: readonly Column<never>[],
	width: number,
	paint: (cell: Cell, width: number, right: boolean) => string,
): string[] {
	const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]![0].length)));
	return rows.map((row) => {
		let line = "";
		let used = 0;
		for (const [i, cell] of row.entries()) {
			const gap = i === 0 ? 0 : 2;
			// A column that does not fit is left out whole.
			if (used + gap + (widths[i] as number) > width) break;
			line += " ".repeat(gap) + paint(cell, widths[i] as number, columns[i]?.right === true);
			used += gap + (widths[i] as number);
		}
		return line.trimEnd();
	});
}

function readiness({ ready, workers }: ModelView): Cell {
	const up = ready ?? Object.values(workers).some((role) => role.ready > 0);
	return up ? ["ready", "green"] : ["not ready", "red"];
}

function workersOf({ workers }: ModelView): string {
	const parts = Object.entries(workers).map(([role, { ready, all }]) =>
		ready === all ? `${all} ${role}` : `${ready}/${all} ${role}`,
	);
	return parts.join(", ") || "none";
}

function level(share: number | null): Style | undefined {
	if (share === null || share < 0.8) return undefined;
	return share < 0.95 ? "yellow" : "red";
}

function count(value: number | null): string {
	if (value === null) return UNKNOWN;
	if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
	if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
	return Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function seconds(value: number | null): string {
	if (value === null) return UNKNOWN;
	if (value >= 1) return `${value.toFixed(value >= 100 ? 0 : 1)}s`;
	return `${(value * 1000).toFixed(value >= 0.1 ? 0 : 1)}ms`;
}

function percent(share: number | null): string {
	return share === null ? UNKNOWN : `${(share * 100).toFixed(0)}%`;
}

function age(value: number): string {
	if (value < 60) return `${Math.floor(value)}s`;
	if (value < 3600) return `${Math.floor(value / 60)}m`;
	if (value < 86_400) return `${Math.floor(value / 3600)}h${Math.floor((value % 3600) / 60)}m`;
	return `${Math.floor(value / 86_400)}d${Math.floor((value % 86_400) / 3600)}h`;
}

function plural(n: number, word: string): string {
	return `${n} ${word}${n === 1 ? "" : "s"}`;
}
