// SPDX-License-Identifier: Apache-2.0
// What the panels of the Grafana dashboards have in common; built with Grafana's own schema.
import {
	BigValueGraphMode,
	GraphThresholdsStyleConfigBuilder,
	GraphThresholdsStyleMode,
	LegendDisplayMode,
	LegendPlacement,
	ReduceDataOptionsBuilder,
	SortOrder,
	TooltipDisplayMode,
	VisibilityMode,
	VizLegendOptionsBuilder,
	VizTooltipOptionsBuilder,
} from "@grafana/grafana-foundation-sdk/common";
import {
	DashboardBuilder,
	DashboardCursorSync,
	DashboardLinkBuilder,
	DashboardLinkType,
	DatasourceVariableBuilder,
	QueryVariableBuilder,
	RowBuilder,
	type Threshold,
	ThresholdsConfigBuilder,
	ThresholdsMode,
	VariableHide,
	VariableRefresh,
	VariableSort,
} from "@grafana/grafana-foundation-sdk/dashboard";
import { DataqueryBuilder } from "@grafana/grafana-foundation-sdk/prometheus";
import { PanelBuilder as StatBuilder } from "@grafana/grafana-foundation-sdk/stat";
import { PanelBuilder as TimeseriesBuilder } from "@grafana/grafana-foundation-sdk/timeseries";

/** A query and what its series are called. */
export type Query = readonly [expr: string, legend: string];

/** The Prometheus that the dashboard's variable `datasource` names. */
const PROMETHEUS = { type: "prometheus", uid: "$datasource" };

export interface PanelOptions {
	/** Grafana's name of a unit. */
	readonly unit?: string;
	/** Columns of 24; a third by default. */
	readonly span?: number;
	/** Told by the question mark beside the title. */
	readonly note?: string;
	/** Value above which it turns yellow, and red. */
	readonly limits?: readonly [number, number];
	readonly max?: number;
}

function targets(queries: readonly Query[]): DataqueryBuilder[] {
	return queries.map(([expr, legend], i) =>
		new DataqueryBuilder()
			.expr(expr)
			.legendFormat(legend)
			.refId(String.fromCharCode(65 + i)),
	);
}

function thresholds(limits?: readonly [yellow: number, red: number]): ThresholdsConfigBuilder {
	const steps: Threshold[] = [{ value: null, color: "green" }];
	if (limits !== undefined) steps.push({ value: limits[0], color: "yellow" }, { value: limits[1], color: "red" });
	return new ThresholdsConfigBuilder().mode(ThresholdsMode.Absolute).steps(steps);
}

/** One number. */
export function stat(title: string, expr: string, options: PanelOptions = {}): StatBuilder {
	const panel = new StatBuilder()
		.title(title)
		.datasource(PROMETHEUS)
		.height(4)
		.span(options.span ?? 3)
		.thresholds(thresholds(options.limits))
		.graphMode(BigValueGraphMode.None)
		.reduceOptions(new ReduceDataOptionsBuilder().calcs(["lastNotNull"]));
	if (options.unit !== undefined) panel.unit(options.unit);
	if (options.note !== undefined) panel.description(options.note);
	for (const target of targets([[expr, ""]])) panel.withTarget(target.instant());
	return panel;
}

/** Lines over time. */
export function graph(title: string, queries: readonly Query[], options: PanelOptions = {}): TimeseriesBuilder {
	const panel = new TimeseriesBuilder()
		.title(title)
		.datasource(PROMETHEUS)
		.height(8)
		.span(options.span ?? 8)
		.min(0)
		.fillOpacity(10)
		.lineWidth(1)
		.showPoints(VisibilityMode.Never)
		.tooltip(new VizTooltipOptionsBuilder().mode(TooltipDisplayMode.Multi).sort(SortOrder.Descending))
		.legend(
			new VizLegendOptionsBuilder()
				.displayMode(LegendDisplayMode.List)
				.placement(LegendPlacement.Bottom)
				.showLegend(true)
				.calcs([]),
		);
	if (options.unit !== undefined) panel.unit(options.unit);
	if (options.note !== undefined) panel.description(options.note);
	if (options.max !== undefined) panel.max(options.max);
	if (options.limits !== undefined) {
		panel
			.thresholds(thresholds(options.limits))
			.thresholdsStyle(new GraphThresholdsStyleConfigBuilder().mode(GraphThresholdsStyleMode.Dashed));
	}
	for (const target of targets(queries)) panel.withTarget(target);
	return panel;
}

/** p50, p90, p99 and the average of a histogram over the time of a point. @param by labels that lines are split by. */
export function quantiles(metric: string, selector: string, by: readonly string[] = [], factor = ""): Query[] {
	const labels = ["le", ...by].join(", ");
	const split = by.length > 0 ? ` by (${by.join(", ")})` : "";
	const suffix = by.map((label) => ` {{${label}}}`).join("");
	const lines = [0.5, 0.9, 0.99].map(
		(q): Query => [
			`histogram_quantile(${q}, sum by (${labels}) (rate(${metric}_bucket{${selector}}[$__rate_interval])))${factor}`,
			`p${q * 100}${suffix}`,
		],
	);
	const [sum, count] = ["sum", "count"].map(
		(part) => `sum${split} (rate(${metric}_${part}{${selector}}[$__rate_interval]))`,
	);
	return [...lines, [`${sum} / (${count} > 0)${factor}`, `average${suffix}`]];
}

/** Mean of a histogram over the whole range of the dashboard. */
export function meanOver(metric: string, selector: string, factor = ""): string {
	const part = (name: string) => `sum(increase(${metric}_${name}{${selector}}[$__range]))`;
	return `${part("sum")} / ${part("count")}${factor}`;
}

export interface DashboardOptions {
	readonly uid: string;
	readonly title: string;
	readonly note: string;
	readonly from: string;
	readonly refresh: string;
	/** Variables: name and the label values that it offers. */
	readonly variables: readonly {
		readonly name: string;
		readonly label: string;
		readonly query: string;
		/** Several can be chosen, and all are at first. */
		readonly all?: boolean;
	}[];
}

/** A dashboard without panels: where its data is, what can be chosen, links to its neighbours, traces and logs. */
export function dashboard(options: DashboardOptions): DashboardBuilder {
	const builder = new DashboardBuilder(options.title)
		.uid(options.uid)
		.description(options.note)
		.tags(["dynamo"])
		.time({ from: options.from, to: "now" })
		.refresh(options.refresh)
		.timezone("browser")
		.tooltip(DashboardCursorSync.Crosshair)
		.editable()
		.withVariable(new DatasourceVariableBuilder("datasource").label("Prometheus").type("prometheus"));
	for (const { name, label, query, all } of options.variables) {
		const variable = new QueryVariableBuilder(name)
			.label(label)
			.datasource(PROMETHEUS)
			.query(query)
			.refresh(VariableRefresh.OnTimeRangeChanged)
			.sort(VariableSort.AlphabeticalAsc)
			.hide(VariableHide.DontHide);
		if (all) variable.includeAll(true).multi(true).allValue(".*");
		builder.withVariable(variable);
	}
	for (const link of links()) builder.link(link);
	return builder;
}

function links(): DashboardLinkBuilder[] {
	const explore = (title: string, tip: string, source: string, query: Record<string, unknown>) => {
		const pane = { datasource: source, queries: [{ refId: "A", ...query }], range: { from: "now-1h", to: "now" } };
		return new DashboardLinkBuilder(title)
			.type(DashboardLinkType.Link)
			.icon("external link")
			.tooltip(tip)
			.keepTime(true)
			.url(`/explore?schemaVersion=1&panes=${encodeURIComponent(JSON.stringify({ a: pane }))}`);
	};
	return [
		new DashboardLinkBuilder("Dynamo").type(DashboardLinkType.Dashboards).tags(["dynamo"]).keepTime(true),
		explore("Traces", "Requests in Tempo", "tempo", { queryType: "traceql", query: '{name="http-request"}' }),
		explore("Logs", "Log lines in Loki", "loki", { expr: '{service_name=~"dynamo.*"}' }),
	];
}

/** Adds a row and its panels. */
export function section(
	builder: DashboardBuilder,
	title: string,
	panels: readonly (StatBuilder | TimeseriesBuilder)[],
): void {
	builder.withRow(new RowBuilder(title));
	for (const panel of panels) builder.withPanel(panel);
}
