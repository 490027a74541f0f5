// SPDX-License-Identifier: Apache-2.0
// Telemetry of one runtime: its tracer, and what is exported. OpenTelemetry's packages are loaded here and only when
// something is exported.
import type { LogConfig } from "../log-settings.js";
import type { Logger, LogRelay } from "../logging.js";
import type { MetricsRegistry } from "../metrics.js";
import { createSampler } from "./sampler.js";
import { type SpanSink, Tracer } from "./span.js";
import type { TelemetryConfig } from "./telemetry-settings.js";

/** Longest wait for what is queued when a process ends, milliseconds. */
const FLUSH_TIMEOUT_MS = 3000;

/** Anything that is flushed and closed at the end. */
interface Closable {
	shutdown(): Promise<void>;
}

/** Spans have few targets: their loggers are made once. */
function loggersByTarget(log: Logger): (target: string) => Logger {
	const loggers = new Map<string, Logger>();
	return (target) => {
		let logger = loggers.get(target);
		if (logger === undefined) {
			logger = log.child(target);
			loggers.set(target, logger);
		}
		return logger;
	};
}

export class Telemetry {
	readonly tracer: Tracer;
	private readonly relay: LogRelay;
	private readonly parts: Closable[];

	private constructor(tracer: Tracer, relay: LogRelay, parts: Closable[]) {
		this.tracer = tracer;
		this.relay = relay;
		this.parts = parts;
	}

	/**
	 * Starts what the configuration asks for and says so in the log. Never waits for a receiver.
	 * @param relay gets what exports log lines.
	 * @param sink takes spans in place of an exporter.
	 */
	static async start(
		config: TelemetryConfig,
		console: LogConfig,
		log: Logger,
		relay: LogRelay,
		sink?: SpanSink,
	): Promise<Telemetry> {
		const parts: Closable[] = [];
		const { serviceName, traces, logs } = config;
		let spans = sink;
		if (traces !== undefined && logs !== undefined) {
			const { SpanExport, LogExport } = await import("./otlp-export.js");
			const spanExport = new SpanExport(traces, serviceName, log);
			const logExport = new LogExport(logs, serviceName, log);
			parts.push(spanExport, logExport);
			spans ??= spanExport;
			relay.emit = (level, target, message, fields, span) => logExport.emit(level, target, message, fields, span);
		}
		const state = { console_format: console.format, service: serviceName };
		if (traces === undefined) log.info("OpenTelemetry OTLP export disabled, traces local only", state);
		else {
			const { url, protocol } = traces;
			log.info("OpenTelemetry OTLP export enabled (traces and logs)", {
				console_format: state.console_format,
				endpoint: url,
				protocol,
				service: serviceName,
			});
		}
		const lifecycle = console.spanEvents === true ? loggersByTarget(log) : undefined;
		const tracer = new Tracer({ sink: spans, lifecycle }, createSampler(config.sampling));
		return new Telemetry(tracer, relay, parts);
	}

	/** Begins the export of metrics, when it is asked for. */
	async exportMetrics(config: TelemetryConfig, metrics: MetricsRegistry, log: Logger): Promise<void> {
		if (config.metrics === undefined) return;
		if (config.metrics.protocol !== "grpc") {
			log.error("OpenTelemetry metrics export is misconfigured; not exporting", {
				protocol: config.metrics.protocol,
				valid: "grpc",
			});
			return;
		}
		const { MetricsExport } = await import("./otlp-metrics.js");
		this.parts.push(new MetricsExport(config.metrics, config.serviceName, metrics, log));
	}

	/** Sends what is queued, for three seconds at most, and closes. Never rejects; a second call does nothing. */
	async shutdown(): Promise<void> {
		delete this.relay.emit;
		const parts = this.parts.splice(0);
		if (parts.length === 0) return;
		let timer: NodeJS.Timeout | undefined;
		const timeout = new Promise<void>((resolve) => {
			timer = setTimeout(resolve, FLUSH_TIMEOUT_MS);
		});
		await Promise.race([Promise.allSettled(parts.map((part) => part.shutdown())), timeout]);
		clearTimeout(timer);
	}
}
